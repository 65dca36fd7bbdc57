// For pieces of the page with buttons: `element` is the piece, `trigger` calls the demo.
element.addEventListener("click", event => {
  const example = event.target.closest("button[data-example]");
  if (example) trigger("click", {index: example.dataset.example});

  const copy = event.target.closest("button[data-copy]");
  if (copy) {
    navigator.clipboard.writeText(copy.parentElement.querySelector("pre").innerText);
    copy.innerText = "Copied";
    setTimeout(() => { copy.innerText = "Copy"; }, 2000);
  }
});
