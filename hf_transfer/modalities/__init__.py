"""What a sample is: image, text, image with text. Columns, preprocessing, augmentation and loaders of each."""
