// V, M and C as ONNX files, run by onnxruntime-web on one thread: what `simulus-nb export` writes.
import * as ort from "./ort/ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = {wasm: new URL("./ort/ort-wasm-simd-threaded.wasm", import.meta.url).href};

const KINDS = {int64: BigInt64Array, float32: Float32Array, uint8: Uint8Array};
const size = shape => shape.reduce((a, b) => a * b, 1);

// The parts of an agent as functions of tensors, and their manifest.
export async function load(folder) {
  const answer = await fetch(new URL("manifest.json", folder));
  if (!answer.ok) throw new Error("the trained networks are not there");
  const manifest = await answer.json(), parts = {};
  for (const [name, part] of Object.entries(manifest.graphs)) {
    const session = await ort.InferenceSession.create(new URL(part.file, folder).href);
    parts[name] = async (...inputs) => {
      const found = await session.run(Object.fromEntries(part.inputs.map((x, i) => [x.name, inputs[i]])));
      return part.outputs.map(x => found[x.name]);
    };
  }
  return {manifest, parts};
}

// Input `name` of a part, filled; with zeros if nothing is given.
export function input(model, part, name, data) {
  const {dtype, shape} = model.manifest.graphs[part].inputs.find(x => x.name === name);
  const Kind = KINDS[dtype];
  const made = data === undefined ? new Kind(size(shape)) : Kind.from(data, Kind === BigInt64Array ? BigInt : Number);
  return new ort.Tensor(dtype, made, shape);
}

export const noMemory = model => input(model, "answer", "memory");          // M has seen nothing
export const noState = model => ["h", "c"].map(x => input(model, "act", x));    // nor has C

// p_T of each row of logits, Eq. (32.2).
export function chances({data, dims}, temperature) {
  const n = dims.at(-1), rows = [];
  for (let i = 0; i < data.length; i += n) {
    const row = data.subarray(i, i + n), most = row.reduce((a, b) => Math.max(a, b));
    let p;
    if (temperature < 1e-3) {
      p = new Float64Array(n);
      p[row.indexOf(most)] = 1;                                             // Eq. (32.2), p_0
    } else {
      p = Float64Array.from(row, x => Math.exp((x - most) / temperature));  // Eq. (32.2), p_T
      const sum = p.reduce((a, b) => a + b);
      p = p.map(x => x / sum);
    }
    rows.push(p);
  }
  return rows;
}

// The chance of the end at a temperature: the same with two choices.
export function chanceOfEnd(p, temperature) {
  if (temperature < 1e-3) return Number(p > 0.5);
  return 1 / (1 + Math.pow((1 - p) / p, 1 / temperature));
}

// A source of numbers in [0, 1) that starts again from any earlier `dice.state`: mulberry32.
export function makeDice(seed) {
  const dice = () => {
    dice.state = dice.state + 0x6D2B79F5 | 0;
    let t = Math.imul(dice.state ^ dice.state >>> 15, 1 | dice.state);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
  dice.state = seed | 0;
  return dice;
}

export function draw(p, dice) {
  let u = dice();
  for (let i = 0; i < p.length; i++) if ((u -= p[i]) < 0) return i;
  return p.findLastIndex(x => x > 0);                           // the sum was a little below 1
}

export const entropy = p => p.reduce((sum, x) => sum - (x > 0 ? x * Math.log2(x) : 0), 0);  // bits

// Observations, in the order of the manifest, to tokens.
export async function encode(model, ...observations) {
  const about = model.manifest.graphs.encoder.inputs;
  const [z] = await model.parts.encoder(...about.map((x, i) => input(model, "encoder", x.name, observations[i])));
  return Array.from(z.data, Number);
}

// Tokens to a picture, as bytes.
export async function decode(model, z) {
  const [seen] = await model.parts.decoder(input(model, "decoder", "z", z));
  return Uint8ClampedArray.from(seen.data, x => 255 * x);       // rounds, and stays in 0 to 255
}

// C reads an observation: chances of its actions, its value, its state; then the action taken.
export async function decide(model, z, state) {
  const [logits, value, h, c] = await model.parts.decide(input(model, "decide", "z", z), ...state);
  return {policy: chances(logits, 1), value: value.data[0], state: [h, c]};
}

export const act = (model, action, state) => model.parts.act(input(model, "act", "action", action), ...state);

// A step of M: logits of each modality, mean reward, chance of the end, memory.
export async function answer(model, z, action, memory) {
  const inputs = [input(model, "answer", "z", z), input(model, "answer", "action", action), memory];
  const found = await model.parts.answer(...inputs);
  const [reward, end, after] = found.splice(-3);
  return {logits: found, reward: reward.data[0], end: end.data[0], memory: after};
}

// A dream without dice, (steps, S) tokens: what `likeliest` of the library gives.
export async function likeliest(model, z, steps) {
  let memory = noMemory(model), state = noState(model);
  const best = p => p.indexOf(Math.max(...p)), out = [];
  for (let i = 0; i < steps; i++) {
    const found = await decide(model, z, state), action = found.policy.map(best);
    state = await act(model, action, found.state);
    const said = await answer(model, z, action, memory);
    memory = said.memory;
    z = said.logits.flatMap(x => chances(x, 0).map(best));
    out.push(z);
  }
  return out;
}
