"""Plausible wrong answers to the exercises of `nbs/06_perceptual.ipynb`: each check must refuse
them."""

# %% 6.1 forgets the root
def as_wrong_as_a_missing_ball(side, ball, contrast):
    return contrast * (ball / side) ** 2

# %% 6.1 compares sums without squares
def as_wrong_as_a_missing_ball(side, ball, contrast):
    return contrast * ball**2 / side

# %% 6.2 only divides by the length
def back_through_the_scaling(f, g):
    return g / f.norm()

# %% 6.2 forgets to divide by the length
def back_through_the_scaling(f, g):
    direction = f / f.norm()
    return g - (g @ direction) * direction

# %% 6.2 keeps the part along the features
def back_through_the_scaling(f, g):
    direction = f / f.norm()
    return (g @ direction) * direction / f.norm()

# %% 6.3 mends the batch only
def lpips_distance(features_x, features_y, heads):
    total = 0
    for f, g, w in zip(features_x, features_y, heads):
        f = f / f.square().sum(1, keepdim=True).sqrt()
        g = g / g.square().sum(1, keepdim=True).sqrt()
        total = total + (w[:, None, None] * (f - g) ** 2).sum(1).mean((1, 2))
    return total

# %% 6.3 mends the silence only
def lpips_distance(features_x, features_y, heads):
    total = 0
    for f, g, w in zip(features_x, features_y, heads):
        f, g = unit_channels(f), unit_channels(g)
        total = total + (w[:, None, None] * (f - g) ** 2).sum(1).mean()
    return total

# %% 6.3 averages over the channels as well
def lpips_distance(features_x, features_y, heads):
    total = 0
    for f, g, w in zip(features_x, features_y, heads):
        f, g = unit_channels(f), unit_channels(g)
        total = total + (w[:, None, None] * (f - g) ** 2).mean((1, 2, 3))
    return total

# %% 6.4 halves the picture around 0
def twins(x):
    return x / 2

# %% 6.4 mirrors it
def twins(x):
    return x.flip(-1)

# %% 6.4 makes it brighter
def twins(x):
    return (x + 0.2).clamp(-1, 1)

# %% 6.5 forgets that a halving sees a neighbour too
def patches_seen(depths):
    side, apart, seen = 1, 1, []
    for depth in depths:
        side += 2 * apart * depth
        seen.append(side)
        apart *= 2
    return seen

# %% 6.5 forgets that neighbours are further apart after a halving
def patches_seen(depths):
    side, seen = 1, []
    for l, depth in enumerate(depths):
        side += 2 * depth + (l > 0)
        seen.append(side)
    return seen

# %% 6.6 averages over the batch
def edge_distance(x, y):
    error = x - y
    return error.diff(dim=3).square().mean() + error.diff(dim=2).square().mean()

# %% 6.6 takes differences around the border
def edge_distance(x, y):
    error = x - y
    across = (error - error.roll(1, 3)).square().mean((1, 2, 3))
    return across + (error - error.roll(1, 2)).square().mean((1, 2, 3))

# %% 6.6 looks along the rows only
def edge_distance(x, y):
    return (x - y).diff(dim=3).square().mean((1, 2, 3))
