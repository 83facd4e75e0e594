"""Plausible wrong answers to the exercises of chapter 2: each replaces an answer cell."""
# %% 2.1 lets windows lie inside the episode only
def number_of_windows(lengths, T):
    return sum(max(L + 1 - T + 1, 0) for L in lengths)

# %% 2.1 counts windows that show a single row
def number_of_windows(lengths, T):
    return sum(L + T for L in lengths)

# %% 2.1 gives windows to an episode without a transition
def number_of_windows(lengths, T):
    return sum(L + T - 2 for L in lengths)

# %% 2.1 counts one window too few
def number_of_windows(lengths, T):
    return sum(L + T - 3 for L in lengths if L > 0)

# %% 2.2 counts the places of a window as transitions
def shown_compared(k, T):
    return min(k + 1, T) / T

# %% 2.2 counts transitions from 1
def shown_compared(k, T):
    return min(k, T - 1) / (T - 1)

# %% 2.2 believes that all are shown alike
def shown_compared(k, T):
    return 1.0

# %% 2.3 mends the final row only
def rows_of_window(w, T, start, end, newest, ring):
    position = w + np.arange(T)
    inside = (start <= position) & (position <= end)
    return np.where(inside, position % ring, -1)

# %% 2.3 mends the ring only
def rows_of_window(w, T, start, end, newest, ring):
    position = w + np.arange(T)
    inside = (max(start, newest - ring + 1) <= position) & (position < end)
    return np.where(inside, position % ring, -1)

# %% 2.3 is off by one at the oldest row
def rows_of_window(w, T, start, end, newest, ring):
    position = w + np.arange(T)
    inside = (max(start, newest - ring) <= position) & (position <= end)
    return np.where(inside, position % ring, -1)

# %% 2.4 gives the share that is stored
def share_of_ends(lengths):
    return len(lengths) / sum(lengths)

# %% 2.4 weighs the episodes by their length
def share_of_ends(lengths):
    return sum(L / sum(lengths) * (1 / L) for L in lengths)

# %% 2.4 gives the chance of an episode
def share_of_ends(lengths):
    return 1 / len(lengths)

# %% 2.5 takes the windows for as many as the transitions
def times_learnt(batches, B, T, lengths):
    return batches * B * (T - 1) / sum(lengths)

# %% 2.5 counts places in place of transitions
def times_learnt(batches, B, T, lengths):
    return batches * B * T / sum(L + T - 2 for L in lengths)

# %% 2.5 takes all episodes for one
def times_learnt(batches, B, T, lengths):
    return batches * B * (T - 1) / (sum(lengths) + T - 2)

# %% 2.6 always keeps the new row
def place_for(p, R, rng):
    return p if p < R else int(rng.integers(R))

# %% 2.6 is off by one in the chance
def place_for(p, R, rng):
    if p < R:
        return p
    row = int(rng.integers(p))
    return row if row < R else None

# %% 2.6 goes round like a ring
def place_for(p, R, rng):
    return p % R

# %% 2.6 keeps the new row with a fixed chance
def place_for(p, R, rng):
    if p < R:
        return p
    return int(rng.integers(R)) if rng.random() < 0.5 else None
