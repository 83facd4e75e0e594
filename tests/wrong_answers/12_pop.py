"""Plausible wrong answers to the exercises of 12_pop: every check must refuse them."""

# %% 12.1 forgets that POP also pays for its start
def start_at_break_even(K, c):
    return c


# %% 12.1 charges twice the tokens of a block
def start_at_break_even(K, c):
    return c * (K + 1) / (K - 1)


# %% 12.1 counts the calls the wrong way round
def start_at_break_even(K, c):
    return c * (K - 1) / K


# %% 12.2 forgets that mixing may hit a pattern
def share_of_possible_frames(patterns):
    M, K = patterns.shape
    return M * M ** -float(K)


# %% 12.2 takes colours to be equally likely
def share_of_possible_frames(patterns):
    return len(patterns) / patterns.max().add(1).item() ** patterns.shape[1]


# %% 12.2 forgets to add the patterns
def share_of_possible_frames(patterns):
    return (patterns[:, None] == patterns).double().mean(1).prod(-1).mean().item()


# %% 12.3 is the faulty function
def pop_mask(T, L, K, gamma):
    context = torch.arange(T * L)
    asked = ((torch.arange(T)[:, None] + 1) * L + torch.arange(K)).flatten()
    at = torch.cat([context, asked])
    age = at[:, None] - at
    return torch.where(age >= 0, gamma ** age.clamp(min=0).double(), 0.0)


# %% 12.3 hides questions from all others, but not the block to predict
def pop_mask(T, L, K, gamma):
    blocks = torch.arange(T)
    at = torch.cat([torch.arange(T * L), ((blocks[:, None] + 1) * L + torch.arange(K)).flatten()])
    block = torch.cat([blocks.repeat_interleave(L), blocks.repeat_interleave(K)])
    asks = torch.arange(len(at)) >= T * L
    age, same = at[:, None] - at, block[:, None] == block
    may = (age >= 0) & (~asks | (asks[:, None] & same))
    return torch.where(may, gamma ** age.clamp(min=0).double(), 0.0)


# %% 12.3 lets questions see each other in both directions
def pop_mask(T, L, K, gamma):
    blocks = torch.arange(T)
    at = torch.cat([torch.arange(T * L), ((blocks[:, None] + 1) * L + torch.arange(K)).flatten()])
    block = torch.cat([blocks.repeat_interleave(L), blocks.repeat_interleave(K)])
    asks = torch.arange(len(at)) >= T * L
    age, same = at[:, None] - at, block[:, None] == block
    may = torch.where(asks, asks[:, None] & same,
                      (age >= 0) & (~asks[:, None] | (block <= block[:, None])))
    return torch.where(may, gamma ** age.abs().double(), 0.0)


# %% 12.3 places the questions one block too early
def pop_mask(T, L, K, gamma):
    blocks = torch.arange(T)
    at = torch.cat([torch.arange(T * L), (blocks[:, None] * L + torch.arange(K)).flatten()])
    block = torch.cat([blocks.repeat_interleave(L), blocks.repeat_interleave(K)])
    asks = torch.arange(len(at)) >= T * L
    age, same = at[:, None] - at, block[:, None] == block
    may = torch.where(asks, asks[:, None] & same, ~asks[:, None] | (block <= block[:, None]))
    return torch.where(may & (age >= 0), gamma ** age.clamp(min=0).double(), 0.0)


# %% 12.4 does not count the questions
def left_after(T, K, K_a, w):
    return (1 - 1 / w) ** ((T - 1) * (K + K_a))


# %% 12.4 counts a question after the last block too
def left_after(T, K, K_a, w):
    return (1 - 1 / w) ** ((T - 1) * (2 * K + K_a) + K)


# %% 12.4 counts T blocks
def left_after(T, K, K_a, w):
    return (1 - 1 / w) ** (T * (2 * K + K_a))


# %% 12.5 pads behind
def pad_blocks(rows, T):
    x = rows[0].new_zeros(len(rows), T, *rows[0].shape[1:])
    mask = torch.zeros(len(rows), T, dtype=torch.bool)
    for b, row in enumerate(rows):
        x[b, :len(row)] = row
        mask[b, :len(row)] = True
    return x, mask


# %% 12.5 marks the padding in place of the real blocks
def pad_blocks(rows, T):
    x = rows[0].new_zeros(len(rows), T, *rows[0].shape[1:])
    mask = torch.ones(len(rows), T, dtype=torch.bool)
    for b, row in enumerate(rows):
        x[b, T - len(row):] = row
        mask[b, T - len(row):] = False
    return x, mask


# %% 12.5 repeats the first block and calls it real
def pad_blocks(rows, T):
    x = torch.stack([torch.cat([row[:1].expand(T - len(row), -1, -1), row]) for row in rows])
    return x, torch.ones(len(rows), T, dtype=torch.bool)


# %% 12.6 always asks from the first state
def dream(net, xu, state, block, react, steps):
    said = []
    for _ in range(steps):
        y, last = pop(net, block, xu, state)
        said.append(y)
        block = react(y)
    return torch.cat(said, 1), last


# %% 12.6 reads the first block again and again
def dream(net, xu, state, block, react, steps):
    said = []
    for _ in range(steps):
        y, state = pop(net, block, xu, state)
        said.append(y)
        react(y)
    return torch.cat(said, 1), state


# %% 12.6 begins with an empty past
def dream(net, xu, state, block, react, steps):
    said, state = [], None
    for _ in range(steps):
        y, state = pop(net, block, xu, state)
        said.append(y)
        block = react(y)
    return torch.cat(said, 1), state


# %% 12.6 keeps the state that a question leaves
def dream(net, xu, state, block, react, steps):
    said = []
    for _ in range(steps):
        state = net(block, state)[1]
        y, state = net(xu.expand(len(block), 1, -1, -1), state)
        said.append(y)
        block = react(y)
    return torch.cat(said, 1), state
