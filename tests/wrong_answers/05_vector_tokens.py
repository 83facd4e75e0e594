"""Plausible wrong answers to the exercises of `nbs/05_vector_tokens.ipynb`: each check must refuse
them."""

# %% 5.1 takes the first point instead of the midpoint
def end_of_zero(n):
    return math.expm1(vector_grid(n)[n // 2 + 1])

# %% 5.1 stays in symlog space
def end_of_zero(n):
    return vector_grid(n)[n // 2 + 1].item() / 2

# %% 5.1 halves the raw number
def end_of_zero(n):
    return math.expm1(vector_grid(n)[n // 2 + 1]) / 2

# %% 5.2 rounds down instead of up
def encode(x, points):
    return (torch.bucketize(symlog(x), points, right=True) - 1).clamp(min=0)

# %% 5.2 takes the midpoints of the raw numbers
def encode(x, points):
    raw = symexp(points)
    return torch.bucketize(x, (raw[1:] + raw[:-1]) / 2)

# %% 5.2 corrects by one half of an average gap
def encode(x, points):
    half = points.diff().mean() / 2
    return torch.bucketize(symlog(x) - half, points).clamp(max=len(points) - 1)

# %% 5.3 takes (5.6) as it is
def error_with_bound(x, b):
    return (1 + x.abs()) * math.expm1(INNER / 31 / 2)

# %% 5.3 forgets to divide by the scale
def error_with_bound(x, b):
    return (1 + math.pi / b * x.abs()) * math.expm1(INNER / 31 / 2)

# %% 5.3 takes the whole gap
def error_with_bound(x, b):
    return (b / math.pi + x.abs()) * math.expm1(INNER / 31)

# %% 5.4 halves the gap between the raw numbers
def largest_stuck_speed(z, points):
    return ((symexp(points[z + 1]) - symexp(points[z])) / 2).item()

# %% 5.4 takes the gap below
def largest_stuck_speed(z, points):
    return (symexp(points[z]) - symexp((points[z] + points[z - 1]) / 2)).item()

# %% 5.4 stays in symlog space
def largest_stuck_speed(z, points):
    return ((points[z + 1] - points[z]) / 2).item()

# %% 5.5 has the two neighbours the wrong way round
def encode_at_random(x, values, u):
    above = torch.bucketize(x, values).clamp(1, len(values) - 1)
    share = (x - values[above - 1]) / (values[above] - values[above - 1])
    return torch.where(u < share, above - 1, above)

# %% 5.5 shares in symlog space
def encode_at_random(x, values, u):
    above = torch.bucketize(x, values).clamp(1, len(values) - 1)
    low, high = symlog(values[above - 1]), symlog(values[above])
    return torch.where(u < (symlog(x) - low) / (high - low), above, above - 1)

# %% 5.5 tosses a fair coin
def encode_at_random(x, values, u):
    above = torch.bucketize(x, values).clamp(1, len(values) - 1)
    return torch.where(u < 0.5, above, above - 1)

# %% 5.6 takes the next odd number
def levels_with_rest(low, high, at_least):
    return at_least + 1 - at_least % 2

# %% 5.6 counts levels instead of steps
def levels_with_rest(low, high, at_least):
    n = at_least
    while (-low * n) % (high - low):
        n += 1
    return n

# %% 5.6 asks for a whole number of steps per unit, which is too many
def levels_with_rest(low, high, at_least):
    n = at_least
    while (n - 1) % (high - low):
        n += 1
    return n
