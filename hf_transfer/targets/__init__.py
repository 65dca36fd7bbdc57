"""What is predicted: one class, several labels, numbers. One file for each."""
