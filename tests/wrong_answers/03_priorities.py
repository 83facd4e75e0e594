"""Plausible wrong answers to the exercises of chapter 3: each replaces an answer cell."""
# %% 3.1 counts pairs of equal draws
def different_windows(p, B):
    return B * (1 - (p ** 2).sum().item())

# %% 3.1 takes all windows for alike
def different_windows(p, B):
    W = len(p)
    return W * (1 - (1 - 1 / W) ** B)

# %% 3.1 adds up the chances of B draws
def different_windows(p, B):
    return (B * p).clamp(max=1).sum().item()

# %% 3.2 mends the rest only
def draw_by_loss(loss, P, B):
    weight = (loss - loss.max()).exp()
    first = (weight * torch.rand(len(loss))).topk(P).indices
    others = torch.rand(len(loss)).index_fill(0, first, -1.0)
    return torch.cat([first, others.topk(B - P).indices])

# %% 3.2 mends the noise only
def draw_by_loss(loss, P, B):
    key = loss - (-torch.rand(len(loss)).log()).log()
    return torch.cat([key.topk(P).indices, torch.randperm(len(loss))[:B - P]])

# %% 3.2 adds uniform noise to the losses
def draw_by_loss(loss, P, B):
    first = (loss + torch.rand(len(loss))).topk(P).indices
    others = torch.rand(len(loss)).index_fill(0, first, -1.0)
    return torch.cat([first, others.topk(B - P).indices])

# %% 3.2 takes the rest by loss too
def draw_by_loss(loss, P, B):
    return (loss - (-torch.rand(len(loss)).log()).log()).topk(B).indices

# %% 3.2 has the sign of the noise wrong
def draw_by_loss(loss, P, B):
    first = (loss + (-torch.rand(len(loss)).log()).log()).topk(P).indices
    others = torch.rand(len(loss)).index_fill(0, first, -1.0)
    return torch.cat([first, others.topk(B - P).indices])

# %% 3.2 still takes exponentials
def draw_by_loss(loss, P, B):
    first = (torch.rand(len(loss)).log() / loss.exp()).topk(P).indices
    others = torch.rand(len(loss)).index_fill(0, first, -1.0)
    return torch.cat([first, others.topk(B - P).indices])

# %% 3.3 believes in one window for each step
def new_windows(seen, more, T):
    return more

# %% 3.3 counts a window that shows a single row
def new_windows(seen, more, T):
    return more + T - 1 if more > 0 else 0

# %% 3.3 finds new windows without new rows
def new_windows(seen, more, T):
    return more + T - 2

# %% 3.3 keeps windows inside the episode
def new_windows(seen, more, T):
    return max(seen + more - T + 1, 0) - max(seen - T + 1, 0)

# %% 3.4 forgets the loss of the others
def entering_loss(new, W, loss, part):
    return math.log(part / (1 - part) * (W - new) / new)

# %% 3.4 takes the part of all for the odds
def entering_loss(new, W, loss, part):
    return loss + math.log(part * W / new)

# %% 3.4 looks at one new window
def entering_loss(new, W, loss, part):
    return loss + math.log(part / (1 - part) * (W - new))

# %% 3.5 weighs as if all were drawn by loss
def repairing_weights(loss, B):
    return 1 / (len(loss) * loss.softmax(0))

# %% 3.5 adds the chances of both draws
def repairing_weights(loss, B):
    W, p = len(loss), loss.softmax(0)
    return B / (W * (p + (B - 1) / W))

# %% 3.5 makes the largest weight one
def repairing_weights(loss, B):
    W, p = len(loss), loss.softmax(0)
    weight = 1 / (p + (1 - p) * (B - 1) / (W - 1))
    return weight / weight.max()

# %% 3.5 forgets that a batch is averaged
def repairing_weights(loss, B):
    W, p = len(loss), loss.softmax(0)
    return 1 / (W * (p + (1 - p) * (B - 1) / (W - 1)))

# %% 3.6 rounds down
def pictures_to_capture(screen, part):
    return max(1, int(part / (1 - part) * (1 - screen) / screen))

# %% 3.6 forgets the other windows
def pictures_to_capture(screen, part):
    return max(1, math.ceil(part / screen))

# %% 3.6 takes the loss itself for the weight
def pictures_to_capture(screen, part):
    return max(1, math.ceil(math.exp(min(part / (1 - part) * (1 - screen) / screen, 50))))
