// Formulas and pictures first, while all slides stand below one another; what is too large for its
// slide is made smaller; then reveal.js takes over.
window.addEventListener("load", async () => {
  const [wide, high] = window.innerWidth < 600 ? [520, 900] : [1100, 700], margin = 40;
  document.documentElement.style.setProperty("--wide", wide + "px");
  await MathJax.startup.promise;
  await Promise.all(Array.from(document.images, (image) => image.decode().catch(() => null)));
  for (const slide of document.querySelectorAll(".slides section:not(:has(section))")) {
    const formulas = [...slide.querySelectorAll(".math")];
    const fits = () => slide.offsetHeight <= high - margin
      && formulas.every((one) => one.scrollWidth <= one.clientWidth + 1);
    for (let size = 95; size >= 35 && !fits(); size -= 5) slide.style.fontSize = size + "%";
  }
  document.documentElement.dataset.laid = "yes";
  const deck = new Reveal({
    width: wide, height: high, margin: 0.04, hash: true, slideNumber: "c/t", center: false,
    transition: "none", scrollActivationWidth: null,
  });
  await deck.initialize();
  document.documentElement.dataset.ready = "yes";
});
