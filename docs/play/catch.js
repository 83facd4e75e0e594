// Catch, as chapter 1 has it: a ball falls one row a step; be under it when it lands.
export const ROWS = 10, COLS = 5, SIZE = 32;
export const ACTIONS = ["left", "stay", "right"], STAY = 1;
const COLOURS = [[16, 16, 40], [255, 200, 60], [90, 200, 255]];     // nothing, ball, paddle

export const begin = column => ({ball: [0, column], paddle: COLS >> 1});

export function move({ball: [row, column], paddle}, action) {
  paddle = Math.min(Math.max(paddle + action - 1, 0), COLS - 1);
  const ended = row + 1 === ROWS - 1;
  const reward = !ended ? 0 : column === paddle ? 1 : -1;
  return {game: {ball: [row + 1, column], paddle}, reward, ended};
}

// The board as (SIZE, SIZE, 3) bytes; the ball is drawn over the paddle.
export function draw({ball: [row, column], paddle}) {
  const pixels = new Uint8Array(SIZE * SIZE * 3);
  for (let i = 0; i < SIZE * SIZE; i++) {
    const y = Math.floor(Math.floor(i / SIZE) * ROWS / SIZE), x = Math.floor(i % SIZE * COLS / SIZE);
    const what = y === row && x === column ? 1 : y === ROWS - 1 && x === paddle ? 2 : 0;
    pixels.set(COLOURS[what], 3 * i);
  }
  return pixels;
}
