// Says what is missing, or starts the page. A classic script: it also runs where no module is loaded.
(() => {
  const root = document.getElementById("play");
  const stop = text => {
    root.querySelector(".play-says").textContent = text;
    root.setAttribute("aria-busy", "false");
  };
  const here = new URL(".", document.currentScript.src);
  if (location.protocol === "file:") {
    stop("A browser runs no networks from a folder. Serve the site with python -m http.server and open this page there.");
  } else if (typeof WebAssembly !== "object") {
    stop("WebAssembly is missing in this browser, or switched off: the dream needs it.");
  } else {
    import(new URL("page.js", here)).then(page => page.start(root, new URL("agent/", here))).catch(e => {
      stop("The dream cannot run here: " + e.message);
    });
  }
})();
