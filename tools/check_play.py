"""What Chromium finds on the page on which Catch and its dream are played: `check_site.py` calls
this. Real keys are pressed; networks, game and dream are compared with what PyTorch said."""
import base64
import json

PLAY = "play.html"
LEAST = 15                              # frames a second
SAME = """async ([folder, kind]) => {
  const at = name => new URL(name, new URL(folder, location.href)).href;
  const dream = await import(at("dream.js")), session = await import(at("session.js"));
  const catching = await import(at("catch.js"));
  const model = await dream.load(at("agent/"));
  const wanted = await (await fetch(at("check.json"))).json();
  if (kind === "likeliest") return dream.likeliest(model, wanted.start, wanted.likeliest.length);
  const s = session.session(model, 0), shown = [];
  s.temperature = 0;
  const plain = x => x && ({z: x.z, policy: x.policy.map(p => [...p]), value: x.value,
                            reward: x.reward || 0, over: x.over !== ""});
  let begun = false;
  const frame = () => btoa(String.fromCharCode(...catching.draw(s.now.game)));
  const show = () => shown.push({frame: frame(), real: plain(s.now.real),
                                 dream: begun ? plain(s.now.dream) : null});
  await session.fresh(s, wanted.column);
  show();
  s.where = "real";
  for (const action of wanted.keys[0]) { await session.step(s, [action]); show(); }
  await session.begin(s);
  [s.where, begun] = ["both", true];
  show();
  for (const action of wanted.keys[1]) { await session.step(s, [action]); show(); }
  return shown;
}"""
WATCH = """() => {                      // notes what is shown after each step
  const play = document.querySelector("#play"), seen = window.seen = [];
  const pixels = side => play.querySelector(`[data-side=${side}] canvas`).getContext("2d")
    .getImageData(0, 0, 32, 32).data;
  let last = "";
  const note = () => {
    if (play.dataset.step === last) return;
    last = play.dataset.step;
    const [real, dream] = ["real", "dream"].map(pixels), corner = real.slice(-4 * 32, -4 * 32 + 3);
    const apart = real.reduce((sum, x, i) => sum + Math.abs(x - dream[i]), 0) / real.length / 255;
    seen.push({at: performance.now(), step: last, apart, corner: [...corner],
               sum: real.reduce((sum, x, i) => sum + x * (i % 997), 0)});
  };
  new MutationObserver(note).observe(play, {attributeFilter: ["data-step"]});
  note();
}"""
PADDLE = [90, 200, 255]                 # its colour; the observation is 32 pixels wide


def apart(a: dict | None, b: dict | None) -> bool:
    "Whether two sides differ: tokens and ends at all, numbers by more than a thousandth."
    if a is None or b is None:
        return a is not b
    flat = lambda x: [p for row in x["policy"] for p in row] + [x["value"], x["reward"]]
    far = max(abs(p - q) for p, q in zip(flat(a), flat(b), strict=True))
    return a["z"] != b["z"] or a["over"] != b["over"] or far > 1e-3


def compare(page, folder: str, wanted: dict) -> list[str]:
    "Whether the page's networks, game and session are those of the library."
    faults = []
    tokens = page.evaluate(SAME, [folder, "likeliest"])
    if tokens != wanted["likeliest"]:
        first = next(i for i, (a, b) in enumerate(zip(tokens, wanted["likeliest"])) if a != b)
        faults.append(f"the dream at temperature 0 differs from PyTorch's at step {first + 1}")
    if "shown" in wanted:
        shown = page.evaluate(SAME, [folder, "session"])
        for i, (a, b) in enumerate(zip(shown, wanted["shown"], strict=True)):
            if base64.b64decode(a["frame"]) != base64.b64decode(b["frame"]):
                faults.append(f"frame {i} of the game differs")
            faults += [f"the {side} of step {i} differs from the library's"
                       for side in ("real", "dream") if apart(a[side], b[side])]
    return faults


def until(page, step: str) -> None:
    "Wait until game and dream have stood there, since the last `seen`."
    page.wait_for_function(f"window.seen.some(x => x.step === '{step}')")


def seen(page) -> list[dict]:
    "What has been shown since the last question."
    return page.evaluate("window.seen.splice(0)")


def press_keys(page, say) -> list[str]:
    "A game by the keyboard: both sides follow the keys, stop, go back and begin as they should."
    faults = []
    def expect(what: str, good: bool) -> None:
        if not good:
            faults.append(f"not so: {what}")
    page.evaluate("document.querySelector('#play').dataset.rest = 1e6")     # no new game by itself
    page.locator("[name=temperature]").fill("0")
    page.evaluate("document.activeElement.blur()")
    page.evaluate(WATCH)
    page.keyboard.down("ArrowLeft")                     # and time runs
    until(page, "9 9")
    page.keyboard.up("ArrowLeft")
    page.keyboard.press("Escape")
    shown = seen(page)
    start = shown[0]
    told = [x["step"] for x in shown]
    expect("game and dream move together", told == [f"{n} {n}" for n in range(10)])
    far = max(x["apart"] for x in shown[:6])
    expect(f"the first frames agree (they are {far:.3f} apart)", far < 0.02)
    expect("the paddle obeys", all(x["corner"] == PADDLE for x in shown[2:9]))
    for _ in range(9):
        page.keyboard.press(",")
    until(page, "0 0")
    expect("back to the first frame", seen(page)[-1]["sum"] == start["sum"])
    page.keyboard.press(".")
    until(page, "1 1")
    page.wait_for_timeout(600)
    expect("one step, and no more", [x["step"] for x in seen(page)] == ["1 1"])
    page.keyboard.press("Enter")
    until(page, "1 0")
    page.keyboard.press(".")
    until(page, "2 1")
    expect("a dream from there agrees", all(x["apart"] < 0.02 for x in seen(page)))
    page.locator(".play-tokens button").first.hover()
    told = page.locator(".play-token").text_content()
    expect("a token tells of itself", "Token 1" in told and "M expected" in told)
    page.locator("[name=where]").select_option("dream")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press(".")
    until(page, "2 2")
    page.locator("[name=where]").select_option("both")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Backspace")
    until(page, "0 0")
    return faults


def check_touch(page, say) -> list[str]:
    "A finger on a pad plays too."
    page.locator("[data-do=new]").click()
    until(page, "0 0")
    seen(page)
    page.locator("[data-key=ArrowLeft]").dispatch_event("pointerdown")
    until(page, "4 4")
    page.locator("[data-key=ArrowLeft]").dispatch_event("pointerup")
    page.keyboard.press("Escape")
    moved = [x["corner"] for x in seen(page) if x["step"] == "3 3"] == [PADDLE]
    return [] if moved else ["a finger on the pad moves nothing"]


def frame_rate(page, say, seconds: float = 4.0) -> list[str]:
    """Steps a second with the agent playing, as fast as this machine can. What counts is how many
    one core would make if it had nothing else to do."""
    page.evaluate("document.querySelector('#play').dataset.rest = 0")
    page.locator("[name=who]").select_option("game")
    page.locator("[name=speed]").fill("60")
    clock = page.context.new_cdp_session(page)
    clock.send("Performance.enable", {"timeDomain": "threadTicks"})
    def busy() -> float:
        found = clock.send("Performance.getMetrics")["metrics"]
        return next(x["value"] for x in found if x["name"] == "TaskDuration")
    seen(page)
    before = busy()
    page.locator("[data-do=run]").click()
    page.wait_for_timeout(1000 * seconds)
    page.locator("[data-do=run]").click()
    spent, times = busy() - before, [x["at"] for x in seen(page)]
    here, core = (len(times) - 1) / (times[-1] - times[0]) * 1000, len(times) / spent
    say(f"{here:.0f} frames a second here, {core:.0f} on a core of its own")
    return [f"{core:.1f} frames a second on a core, fewer than {LEAST}"] if core < LEAST else []


def check_play(browser, name: str = PLAY, say=print) -> list[str]:
    "All that may be wrong with the page."
    page = browser.open(name, 1400)
    page.wait_for_selector("#play[aria-busy=false]")
    folder = "_static/play/"
    wanted = json.loads(page.evaluate(f"fetch('{folder}check.json').then(x => x.text())"))
    faults = compare(page, folder, wanted)
    for part in press_keys, check_touch, frame_rate:
        try:
            faults += part(page, say)
        except Exception as e:                          # what was waited for did not come
            faults.append(f"{part.__name__} stopped: {str(e).splitlines()[0]}")
    page.close()
    page = browser.open(name, 1400, before="delete window.WebAssembly")
    if "WebAssembly is missing" not in page.locator(".play-says").text_content():
        faults.append("nothing is said where WebAssembly is missing")
    page.close()
    return [f"{name}: {fault}" for fault in faults]
