"""Plausible wrong answers to the exercises of `nbs/08_fsq.ipynb`: each check must refuse them."""

# %% 8.1 forgets the shift of the levels
def edges(L, eps):
    reach = (1 + eps) * (L - 1) / 2
    return ((torch.arange(L - 1).double() - L // 2 + 0.5) / reach).atanh()

# %% 8.1 gives the levels instead of the edges
def edges(L, eps):
    half_step = 0.5 if L % 2 == 0 else 0.0
    reach = (1 + eps) * (L - 1) / 2
    b = torch.arange(L, dtype=torch.float64) - L // 2
    return ((b + half_step) / reach).atanh() - math.atanh(half_step / reach)

# %% 8.1 spreads them evenly
def edges(L, eps):
    return torch.linspace(-2, 2, L - 1, dtype=torch.float64)

# %% 8.2 forgets the table
def weights_saved(c, D, N, n):
    return (9 * c + 1) * (D - n) + 9 * c * (D - n)

# %% 8.2 gives the decoder's bias the width of an entry
def weights_saved(c, D, N, n):
    return N * D + 2 * (9 * c + 1) * (D - n)

# %% 8.2 forgets that a convolution looks at nine places
def weights_saved(c, D, N, n):
    return N * D + (2 * c + 1) * (D - n)

# %% 8.3 hands on the bound and forgets to round
def quantise(h, levels):
    return bound(h, torch.tensor(levels))

# %% 8.3 rounds without a straight-through step
def quantise(h, levels):
    L = torch.tensor(levels)
    return (bound(h, L) * (L // 2)).round() / (L // 2)

# %% 8.3 begins at tanh, which is another bound
def quantise(h, levels):
    L = torch.tensor(levels)
    u = h.tanh()
    e = (bound(h, L) * (L // 2)).round() / (L // 2)
    return u + (e - u).detach()

# %% 8.4 takes the whole reach for the excess
def most_levels(eps):
    return math.floor(1 / (2 * eps)) + 1

# %% 8.4 is one too careful
def most_levels(eps):
    return math.floor(1 / eps)

# %% 8.5 forgets the unit of the entries
def slope_on_level(l, L, eps):
    half_step = 0.5 if L % 2 == 0 else 0.0
    reach = (1 + eps) * (L - 1) / 2
    return reach * (1 - ((l - L // 2 + half_step) / reach) ** 2)

# %% 8.5 forgets the half step
def slope_on_level(l, L, eps):
    reach = (1 + eps) * (L - 1) / 2
    return reach / (L // 2) * (1 - ((l - L // 2) / reach) ** 2)

# %% 8.5 takes tanh instead of its square
def slope_on_level(l, L, eps):
    half_step = 0.5 if L % 2 == 0 else 0.0
    reach = (1 + eps) * (L - 1) / 2
    return reach / (L // 2) * (1 - abs(l - L // 2 + half_step) / reach)

# %% 8.6 carries over the border
def neighbours(z, levels):
    found, place = set(), 1
    for n in levels:
        found |= {z - place, z + place}
        place *= n
    return sorted(x for x in found if 0 <= x < place)

# %% 8.6 takes all places for equal
def neighbours(z, levels):
    found = []
    for j, n in enumerate(levels):
        l = z // n**j % n
        found += [z + step * n**j for step in (-1, 1) if 0 <= l + step < n]
    return sorted(found)

# %% 8.6 counts the corners too
def neighbours(z, levels):
    L = torch.tensor(levels)
    E = FixedGrid(tuple(levels)).entries
    steps = ((E - E[z]) * (L // 2)).abs().round()
    return [i for i in range(len(E)) if i != z and steps[i].max() <= 1]
