// A game and a dream that hear the same keys, as `simulus_nb.play` has it. No page in here.
import * as world from "./catch.js";
import {act, answer, chanceOfEnd, chances, decide, decode, draw, encode, makeDice, noMemory, noState} from "./dream.js";

const CONTEXT = 20, HORIZON = 30, KEPT = 1000;      // steps: read before a dream, of a dream, to go back

export const session = (model, seed) => ({
  model, dice: makeDice(seed), luck: makeDice(seed + 1), where: "both", temperature: 1, now: null, earlier: []
});

// What V and C make of an observation.
async function met(model, z, before, pixels) {
  const seen = await decode(model, z), {policy, value, state} = await decide(model, z, before);
  return {z, pixels: pixels || seen, seen, before, after: state, policy, value, reward: null, end: null, total: 0,
          steps: 0, over: ""};
}

async function looked(model, game, before) {
  const pixels = world.draw(game);
  return met(model, await encode(model, pixels), before, pixels);
}

const dicesOf = s => [s.dice.state, s.luck.state];

// Work that can be taken back. Everything is replaced and nothing is changed, so the past is a list.
async function recorded(s, work) {
  const old = [s.now, dicesOf(s)];
  if (!await work()) return false;
  if (old[0]) s.earlier = [...s.earlier.slice(1 - KEPT), old];
  return true;
}

export function back(s) {
  const last = s.earlier.pop();
  if (last) [s.now, [s.dice.state, s.luck.state]] = last;
  return Boolean(last);
}

async function newGame(s, column) {
  const game = world.begin(column ?? Math.floor(s.luck() * world.COLS));
  const real = await looked(s.model, game, noState(s.model));
  s.now = {...s.now, game, real, past: [], together: false};
}

// A dream from the present of the game, Eq. (32.1).
async function newDream(s) {
  const {real, past} = s.now;
  if (real.over) return false;
  let memory = noMemory(s.model);
  for (const [z, action] of past) ({memory} = await answer(s.model, z, action, memory));   // Eq. (32.1), S_t
  const dream = {...real, pixels: real.seen, reward: null, end: null, total: 0, steps: 0}; // Eq. (32.1), z_t
  s.now = {...s.now, dream, memory, errors: [0], together: true};
  return true;
}

export const begin = s => recorded(s, () => newDream(s));

// A new game and its dream.
export const fresh = (s, column) => recorded(s, async () => {
  await newGame(s, column);
  return newDream(s);
});

async function realStep(s, action) {
  const {real: old, game, past} = s.now, made = world.move(game, action[0]);
  const real = await looked(s.model, made.game, await act(s.model, action, old.after));
  const over = !made.ended ? "" : made.reward > 0 ? "caught" : "missed";
  Object.assign(real, {reward: made.reward, end: Number(made.ended), total: old.total + made.reward,
                       steps: old.steps + 1, over});
  return {real, game: made.game, past: [...past, [old.z, action]].slice(1 - CONTEXT)};
}

async function dreamStep(s, action) {
  const {dream: old, memory: before} = s.now;
  const said = await answer(s.model, old.z, action, before), T = s.temperature;
  const z = said.logits.flatMap(x => chances(x, T).map(p => draw(p, s.dice)));
  const ended = s.dice() < chanceOfEnd(said.end, T);
  const dream = await met(s.model, z, await act(s.model, action, old.after));
  const over = ended ? "M says so" : old.steps + 1 >= HORIZON ? "its horizon" : "";
  Object.assign(dream, {reward: said.reward, end: said.end, total: old.total + said.reward, steps: old.steps + 1,
                        over, chances: said.logits.flatMap(x => chances(x, 1))});
  return {dream, memory: said.memory};
}

const apart = (a, b) => a.reduce((sum, x, i) => sum + Math.abs(x - b[i]), 0) / a.length / 255;

export const moves = s => s.where !== "dream" && !s.now.real.over;
export const dreams = s => s.where !== "real" && !s.now.dream.over;

// One action for whoever hears the keys; "game" or "dream": C decides by what it sees there.
export const step = (s, action) => recorded(s, async () => {
  const [real, dream] = [moves(s), dreams(s)];
  if (!real && !dream) return false;
  if (typeof action === "string")
    action = s.now[action === "dream" ? "dream" : "real"].policy.map(p => draw(p, s.luck));
  const now = {...(real && await realStep(s, action)), ...(dream && await dreamStep(s, action))};
  now.together = s.now.together && real && dream;
  if (now.together) now.errors = [...s.now.errors, apart(now.dream.seen, now.real.seen)];  // Eq. (32.3)
  s.now = {...s.now, ...now};
  return true;
});

// When all that hear the keys are over: once more from the beginning.
export const again = s => recorded(s, async () => {
  if (s.where !== "dream" || s.now.real.over) await newGame(s);
  return s.where === "real" || newDream(s);
});
