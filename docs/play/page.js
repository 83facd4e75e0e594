// The page: draws a session, and sends it what is pressed.
import {ACTIONS, SIZE, STAY} from "./catch.js";
import {entropy, load} from "./dream.js";
import {again, back, begin, dreams, fresh, moves, session, step} from "./session.js";

const COMMANDS = {Enter: "begin", Backspace: "new", Escape: "run", ".": "one", ",": "back"};
const PLACES = ["top left", "top right", "bottom left", "bottom right"];
const percent = p => (p > 0.9995 || p < 0.0005 ? Math.round(100 * p) : (100 * p).toFixed(1)) + "\u00a0%";
const hundredths = x => (Math.round(100 * x) / 100 + 0).toFixed(2);    // no -0.00

export async function start(root, folder) {
  const find = x => root.querySelector(x), side = name => find(`[data-side=${name}]`);
  const control = name => find(`[name=${name}]`), button = name => find(`[data-do=${name}]`);
  const s = session(await load(folder), Date.now());
  const held = new Set(), tapped = new Set();
  let running = false, busy = false, spent = 0, told = null;

  const actionOf = keys => [STAY + keys.has("ArrowRight") - keys.has("ArrowLeft")];

  // ------------------------------------------------------------------------------------ drawing
  function paint(canvas, pixels) {
    const image = new ImageData(SIZE, SIZE);
    for (let i = 0; i < SIZE * SIZE; i++)
      image.data.set([pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255], 4 * i);
    canvas.getContext("2d", {willReadFrequently: true}).putImageData(image, 0, 0);
  }

  function tell(i) {                                    // about token i of the dream
    told = i;
    const {dream, real} = s.now, p = dream.chances && dream.chances[i];
    const name = `Token ${i + 1}${dream.z.length === 4 ? ` (${PLACES[i]})` : ""}`;
    if (!p) return void (find(".play-token").textContent = `${name}: ${dream.z[i]}, given by V.`);
    const best = [...p.keys()].sort((a, b) => p[b] - p[a]).slice(0, 5).filter(k => p[k] > 0.0005);
    const drawn = `${dream.z[i]}, drawn with ${percent(p[dream.z[i]])}`;
    const list = best.map(k => `${k}: ${percent(p[k])}`).join(", ");
    const truth = s.now.together ? `; V sees ${real.z[i]} in the game` : "";
    find(".play-token").textContent = `${name}: ${drawn}${truth}. M expected ${list}. ${entropy(p).toFixed(2)} bits.`;
  }

  function tokens() {
    const {dream, real, together} = s.now, grid = find(".play-tokens");
    if (grid.children.length !== dream.z.length) {
      grid.style.gridTemplateColumns = `repeat(${Math.round(Math.sqrt(dream.z.length))}, 1fr)`;
      grid.replaceChildren(...dream.z.map((_, i) => {
        const cell = document.createElement("button");
        cell.type = "button";
        for (const on of ["mouseenter", "focus", "click"]) cell.addEventListener(on, () => tell(i));
        return cell;
      }));
    }
    const most = Math.log2(dream.chances ? dream.chances[0].length : 2);
    dream.z.forEach((token, i) => {
      const bits = dream.chances ? entropy(dream.chances[i]) : 0, cell = grid.children[i];
      cell.textContent = `${token}${dream.chances ? `\n${bits.toFixed(2)} bits` : ""}`;
      cell.style.background = `hsl(35 95% ${95 - 40 * Math.min(1, 2 * bits / most)}%)`;
      cell.classList.toggle("play-other", together && token !== real.z[i]);
    });
    if (told !== null) tell(told);
  }

  function numbers(name, at) {
    const column = find(`[data-column=${name}]`).cellIndex, x = s.now[name];
    const put = (row, text, share) => {
      const cell = find(`[data-row=${row}]`).cells[column];
      cell.textContent = text;
      cell.style.setProperty("--share", share === undefined ? "0%" : `${100 * share}%`);
    };
    put("step", x.steps);
    put("reward", x.reward === null ? "–" : at ? hundredths(x.reward) : x.reward);
    put("end", x.end === null ? "–" : at ? percent(x.end) : x.end ? "yes" : "no");
    put("total", at ? hundredths(x.total) : x.total);
    put("value", hundredths(x.value));
    ACTIONS.forEach((action, i) => put(action, percent(x.policy[0][i]), x.policy[0][i]));
  }

  function strip() {
    const errors = s.now.errors, canvas = find(".play-strip"), pen = canvas.getContext("2d");
    canvas.width = Math.max(20, errors.length);
    errors.forEach((e, k) => {
      const heat = Math.min(1, e / 0.05);
      pen.fillStyle = `hsl(${60 - 60 * heat} 90% ${15 + 45 * heat}%)`;
      pen.fillRect(k, 0, 1, 1);
    });
    find(".play-error").textContent = errors.at(-1).toFixed(4);
  }

  function show() {
    const {real, dream} = s.now, over = [];
    paint(side("real").querySelector("canvas"), real.pixels);
    paint(side("dream").querySelector("canvas"), dream.pixels);
    tokens();
    numbers("real", false);
    numbers("dream", true);
    strip();
    if (real.over) over.push(`The game is over: ${real.over}.`);
    if (dream.over) over.push(`The dream is over: ${dream.over}.`);
    const paused = !s.earlier.length ? "Press an arrow key, or Go." : "";
    find(".play-says").textContent = over.join(" ") || (running ? "" : paused);
    button("run").textContent = running ? "Pause (Esc)" : "Go (Esc)";
    button("back").disabled = !s.earlier.length;
    root.dataset.step = `${real.steps} ${dream.steps}`;
  }

  // ------------------------------------------------------------------------------------- playing
  async function alone(work) {                          // one thing at a time
    while (busy) await new Promise(go => setTimeout(go, 5));
    busy = true;
    try {
      return await work();
    } finally {
      busy = false;
      show();
    }
  }

  async function advance() {
    const start = performance.now();
    const who = control("who").value, keys = new Set([...held, ...tapped]);
    tapped.clear();
    const done = await alone(() => step(s, who === "you" ? actionOf(keys) : who));
    if (done) {
      const took = performance.now() - start;
      spent = spent ? 0.9 * spent + 0.1 * took : took;
      find(".play-speed").textContent =
        `A step takes ${spent.toFixed(0)} ms here: at most ${Math.floor(1000 / spent)} a second.`;
      root.dataset.ms = spent.toFixed(2);
    }
    return done;
  }

  let ended = null;                                     // when the last game was over
  async function loop() {
    const now = performance.now(), due = now + 1000 / Number(control("speed").value);
    if (moves(s) || dreams(s)) ended = null;
    else ended ??= now;
    if (running && ended === null) await advance();
    else if (running && now - ended >= Number(root.dataset.rest)) await alone(() => again(s));
    setTimeout(loop, Math.max(0, due - performance.now()));
  }

  function run(on) {
    running = on;
    show();
  }

  const does = {
    run: () => run(!running), begin: () => alone(() => begin(s)),
    one: async () => { run(false); if (!await advance()) await alone(() => again(s)); },
    back: () => { run(false); return alone(() => back(s)); },
    new: () => alone(() => fresh(s)),
  };
  for (const [name, work] of Object.entries(does)) button(name).addEventListener("click", work);

  function press(key) {
    held.add(key);
    tapped.add(key);
    if (!running && control("who").value === "you") run(true);
  }
  const own = (e, kinds) => e.target.closest && e.target.closest(kinds);
  addEventListener("keydown", e => {
    if (e.ctrlKey || e.metaKey || e.altKey || own(e, "input, select, textarea")) return;
    if (e.key === "Enter" && own(e, "button, a, summary")) return;
    if (e.key === "ArrowLeft" || e.key === "ArrowRight") { e.preventDefault(); if (!e.repeat) press(e.key); }
    else if (COMMANDS[e.key]) { e.preventDefault(); does[COMMANDS[e.key]](); }
  });
  addEventListener("keyup", e => held.delete(e.key));
  addEventListener("blur", () => held.clear());
  for (const pad of root.querySelectorAll("[data-key]")) {
    pad.addEventListener("pointerdown", e => { e.preventDefault(); press(pad.dataset.key); });
    for (const on of ["pointerup", "pointercancel", "pointerleave"])
      pad.addEventListener(on, () => held.delete(pad.dataset.key));
    pad.addEventListener("click", e => { if (e.detail === 0) { press(pad.dataset.key); held.clear(); } });
  }
  for (const name of ["temperature", "speed"])
    control(name).addEventListener("input", () => {
      control(name).nextElementSibling.textContent = control(name).value;
      s.temperature = Number(control("temperature").value);
    });
  control("where").addEventListener("change", () => { s.where = control("where").value; });

  await fresh(s);
  show();
  for (const x of root.querySelectorAll("button, select, input")) if (x.dataset.do !== "back") x.disabled = false;
  root.setAttribute("aria-busy", "false");
  loop();
}
