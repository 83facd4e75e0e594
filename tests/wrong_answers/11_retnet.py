"""Plausible wrong answers to the exercises of 11_retnet: every check must refuse them."""

# %% 11.1 counts the steps, not the heads
def heads_needed(b_min, b_max, q):
    return max(2, math.ceil(math.log(b_max / b_min) / math.log(q)))


# %% 11.1 rounds down
def heads_needed(b_min, b_max, q):
    return max(2, int(math.log(b_max / b_min) / math.log(q)) + 1)


# %% 11.1 spaces windows evenly, without logarithms
def heads_needed(b_min, b_max, q):
    return math.ceil(b_max / b_min / q) + 1


# %% 11.2 takes the norm to remove every summand
def stays_the_same():
    return {"keys times 3": True, "values times -1": False, "one number added": True,
            "one vector added": True, "one query times 5": True, "one key times 5": False}


# %% 11.2 takes the sign for a size
def stays_the_same():
    return {"keys times 3": True, "values times -1": True, "one number added": True,
            "one vector added": False, "one query times 5": True, "one key times 5": False}


# %% 11.2 takes one key for one query
def stays_the_same():
    return {"keys times 3": True, "values times -1": False, "one number added": True,
            "one vector added": False, "one query times 5": True, "one key times 5": True}


# %% 11.3 mends only the sign
def to_next_frame(S, n):
    return rotate_reference(S, *rotation(torch.tensor([-n]), S.shape[-1]))


# %% 11.3 mends only the index
def to_next_frame(S, n):
    return rotate_reference(S.mT, *rotation(torch.tensor([n]), S.shape[0])).mT


# %% 11.3 moves by one token too few
def to_next_frame(S, n):
    return rotate_reference(S.mT, *rotation(torch.tensor([1 - n]), S.shape[0])).mT


# %% 11.4 turns everything by the sum
def rotate_on_grid(x, row, column):
    return rotate_reference(x, *rotation(row + column, x.shape[-1]))


# %% 11.4 turns all channels twice
def rotate_on_grid(x, row, column):
    once = rotate_reference(x, *rotation(row, x.shape[-1]))
    return rotate_reference(once, *rotation(8 * column, x.shape[-1]))


# %% 11.4 has rows and columns the wrong way round
def rotate_on_grid(x, row, column):
    a, b = x.chunk(2, -1)
    turn = lambda half, at: rotate_reference(half, *rotation(at, half.shape[-1]))
    return torch.cat([turn(a, column), turn(b, row)], -1)


# %% 11.4 slices the table of the whole width
def rotate_on_grid(x, row, column):
    a, b = x.chunk(2, -1)
    quarter = a.shape[-1] // 2
    tables = [[t[:, s] for t in rotation(at, x.shape[-1])] for at, s in (
        (row, slice(0, quarter)), (column, slice(quarter, None)))]
    return torch.cat([rotate_reference(h, *t) for h, t in zip((a, b), tables)], -1)


# %% 11.5 exchanges the later tokens among each other
def reads_the_future(f, x, n):
    y = torch.cat([x[:, :n], x[:, n:].flip(1)], 1)
    return not torch.allclose(f(x)[:, :n], f(y)[:, :n], rtol=0, atol=1e-9)


# %% 11.5 compares all outputs
def reads_the_future(f, x, n):
    y = x.clone()
    y[:, n:] = torch.randn_like(y[:, n:])
    return not torch.allclose(f(x), f(y), rtol=0, atol=1e-9)


# %% 11.5 compares the first output only
def reads_the_future(f, x, n):
    y = x.clone()
    y[:, n:] = torch.randn_like(y[:, n:])
    return not torch.allclose(f(x)[:, 0], f(y)[:, 0], rtol=0, atol=1e-9)


# %% 11.5 changes the row it was given
def reads_the_future(f, x, n):
    before = f(x)[:, :n].clone()
    x[:, n:] = torch.randn_like(x[:, n:])
    return not torch.allclose(before, f(x)[:, :n], rtol=0, atol=1e-9)


# %% 11.6 forgets that a cache has keys and values
def blocks_until_the_cache_is_larger(d, h, L):
    return d // (h * L) + 1


# %% 11.6 counts tokens
def blocks_until_the_cache_is_larger(d, h, L):
    return d // (2 * h) + L


# %% 11.6 takes "as large" for "larger"
def blocks_until_the_cache_is_larger(d, h, L):
    return -(-d // (2 * h * L))
