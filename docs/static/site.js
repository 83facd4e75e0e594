// A mention of an equation shows it: where the mouse is, and where the keyboard is.
(() => {
  const tip = document.createElement("div");
  tip.id = "equation-tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  let shown = null, timer = null;

  async function show(link) {
    clearTimeout(timer);
    const number = link.textContent.replace(/[()]/g, "").trim();
    const known = (window.EQUATIONS || {})[number];
    if (!known || shown === link) return;
    shown = link;
    tip.textContent = "";
    const formula = document.createElement("div"), where = document.createElement("div");
    formula.className = "math";
    formula.textContent = "\\[" + known.tex + "\\]";
    where.className = "where";
    where.textContent = known.where;
    tip.append(formula, where);
    tip.hidden = false;
    MathJax.typesetClear([tip]);
    await MathJax.typesetPromise([formula]);
    if (shown !== link) return;
    const at = link.getBoundingClientRect(), width = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(at.left, width - tip.offsetWidth - 8));
    const below = at.bottom + tip.offsetHeight + 8 < window.innerHeight;
    tip.style.left = left + window.scrollX + "px";
    tip.style.top = window.scrollY + (below ? at.bottom + 4 : at.top - tip.offsetHeight - 4) + "px";
    link.setAttribute("aria-describedby", tip.id);
  }

  function hide() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (shown) shown.removeAttribute("aria-describedby");
      shown = null;
      tip.hidden = true;
    }, 150);
  }

  const mentioned = (event) => event.target.closest && event.target.closest("a.eqref");
  for (const [kind, act] of [["mouseover", show], ["focusin", show], ["mouseout", hide],
                             ["focusout", hide]]) {
    document.addEventListener(kind, (event) => {
      const link = mentioned(event);
      if (link) act(link);
    });
  }
  tip.addEventListener("mouseenter", () => clearTimeout(timer));
  tip.addEventListener("mouseleave", hide);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());

  // What can be scrolled can be reached with the keyboard.
  function reachable() {
    const wide = "div.math, .bd-article table, .bd-article pre, .output, .drawing, .sidebar-scrollbar";
    for (const node of document.querySelectorAll(wide)) {
      const scrolls = node.scrollWidth > node.clientWidth + 1 || node.scrollHeight > node.clientHeight + 1;
      if (scrolls && !node.hasAttribute("tabindex")) node.setAttribute("tabindex", "0");
    }
  }

  const word = (text) => (window.WORDS || {})[text] || text;

  // The theme's names for what has a text of its own, or none.
  function name() {
    for (const node of document.querySelectorAll("summary[aria-label], button[aria-label]")) {
      if (node.innerText.trim()) node.removeAttribute("aria-label");
    }
    for (const node of document.querySelectorAll("nav li > details > summary")) {
      const link = node.closest("li").querySelector("a");
      const part = link ? link.textContent.trim() : word("this part");
      node.setAttribute("aria-label", word("Chapters of") + " " + part);
    }
  }

  document.addEventListener("DOMContentLoaded", () => document.body.append(tip));
  window.addEventListener("load", async () => {
    if (window.MathJax && MathJax.startup && MathJax.startup.promise) await MathJax.startup.promise;
    name();
    reachable();
    window.addEventListener("resize", reachable);
    document.documentElement.dataset.ready = "yes";
  });
})();
