"""Plausible wrong answers to the exercises of chapter 23: each replaces an answer cell."""
# %% 23.1 lets the memory grow while nothing is collected
def encodings_of_run(config):
    s, m, c, E = config.collect.steps, config.train_m, config.train_c, config.epochs
    once = sum(s * (e + 1) for e in range(min(m.start, c.start), E))
    of_m = max(0, E - m.start) * m.steps * m.batch * m.segment
    of_c = max(0, E - c.start) * c.steps * c.batch * c.burn_in
    return once, of_m + of_c

# %% 23.1 tokenises from the first epoch on
def encodings_of_run(config):
    s, m, c, E = config.collect.steps, config.train_m, config.train_c, config.epochs
    once = sum(s * min(e + 1, config.collecting) for e in range(E))
    of_m = max(0, E - m.start) * m.steps * m.batch * m.segment
    of_c = max(0, E - c.start) * c.steps * c.batch * c.burn_in
    return once, of_m + of_c

# %% 23.1 counts the full memory in each epoch
def encodings_of_run(config):
    s, m, c, E = config.collect.steps, config.train_m, config.train_c, config.epochs
    once = max(0, E - min(m.start, c.start)) * s * config.collecting
    of_m = max(0, E - m.start) * m.steps * m.batch * m.segment
    of_c = max(0, E - c.start) * c.steps * c.batch * c.burn_in
    return once, of_m + of_c

# %% 23.1 takes the dream for the context
def encodings_of_run(config):
    s, m, c, E = config.collect.steps, config.train_m, config.train_c, config.epochs
    once = sum(s * min(e + 1, config.collecting) for e in range(min(m.start, c.start), E))
    of_m = max(0, E - m.start) * m.steps * m.batch * m.segment
    of_c = max(0, E - c.start) * c.steps * c.batch * c.horizon
    return once, of_m + of_c

# %% 23.2 mends the order only
def one_epoch(stages, e, start):
    stages["collect"]()
    if e >= start["v"]:
        stages["v"]()
    if e >= start["m"]:
        stages["tokenise"]()
    for part in ("m", "c"):
        if e >= start[part]:
            stages[part]()

# %% 23.2 mends the condition only
def one_epoch(stages, e, start):
    stages["collect"]()
    if e >= min(start["m"], start["c"]):
        stages["tokenise"]()
    for part in ("v", "m", "c"):
        if e >= start[part]:
            stages[part]()

# %% 23.2 tokenises in every epoch
def one_epoch(stages, e, start):
    stages["collect"]()
    if e >= start["v"]:
        stages["v"]()
    stages["tokenise"]()
    for part in ("m", "c"):
        if e >= start[part]:
            stages[part]()

# %% 23.2 tokenises before each reader
def one_epoch(stages, e, start):
    stages["collect"]()
    if e >= start["v"]:
        stages["v"]()
    for part in ("m", "c"):
        if e >= start[part]:
            stages["tokenise"]()
            stages[part]()

# %% 23.3 reads what stands in grad
def who_reaches_whom(losses, parts):
    table = {}
    for i, loss in losses.items():
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        for j, part in parts.items():
            table[i, j] = any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    return table

# %% 23.3 clears the gradients of others
def who_reaches_whom(losses, parts):
    table = {}
    for i, loss in losses.items():
        for part in parts.values():
            part.zero_grad()
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        for j, part in parts.items():
            table[i, j] = any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    return table

# %% 23.3 takes a path for a derivative
def who_reaches_whom(losses, parts):
    table = {}
    for i, loss in losses.items():
        for j, part in parts.items():
            found = [None]
            if loss.requires_grad:
                found = torch.autograd.grad(
                    loss, list(part.parameters()), retain_graph=True, allow_unused=True
                )
            table[i, j] = any(g is not None for g in found)
    return table

# %% 23.3 forgets the loss without parameters
def who_reaches_whom(losses, parts):
    table = {}
    for i, loss in losses.items():
        for j, part in parts.items():
            found = torch.autograd.grad(
                loss, list(part.parameters()), retain_graph=True, allow_unused=True
            )
            table[i, j] = any(g is not None and bool(g.any()) for g in found)
    return table

# %% 23.4 forgets the start at zero
def steps_taken(gradients, lr, clip):
    m, v, steps = 0.0, 0.0, []
    for g in gradients:
        g = g * min(1, clip / abs(g)) if g else 0.0
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        steps.append(lr * m / (v**0.5 + 1e-8))
    return steps

# %% 23.4 is off by one in the count of updates
def steps_taken(gradients, lr, clip):
    m, v, steps = 0.0, 0.0, []
    for t, g in enumerate(gradients, start=2):
        g = g * min(1, clip / abs(g)) if g else 0.0
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        steps.append(lr * m / (1 - 0.9**t) / ((v / (1 - 0.999**t))**0.5 + 1e-8))
    return steps

# %% 23.4 scales every gradient to the largest norm
def steps_taken(gradients, lr, clip):
    m, v, steps = 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        g = g * clip / abs(g) if g else 0.0
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        steps.append(lr * m / (1 - 0.9**t) / ((v / (1 - 0.999**t))**0.5 + 1e-8))
    return steps

# %% 23.4 clips the step and not the gradient
def steps_taken(gradients, lr, clip):
    m, v, steps = 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = m / (1 - 0.9**t) / ((v / (1 - 0.999**t))**0.5 + 1e-8)
        steps.append(lr * max(-clip, min(clip, step)))
    return steps

# %% 23.4 forgets the root
def steps_taken(gradients, lr, clip):
    m, v, steps = 0.0, 0.0, []
    for t, g in enumerate(gradients, start=1):
        g = g * min(1, clip / abs(g)) if g else 0.0
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        steps.append(lr * m / (1 - 0.9**t) / (v / (1 - 0.999**t) + 1e-8))
    return steps

# %% 23.5 goes by the shape
def names_that_decay(module):
    return {n for n, p in module.named_parameters() if p.requires_grad and p.ndim >= 2}

# %% 23.5 goes by the name
def names_that_decay(module):
    return {n for n, p in module.named_parameters() if p.requires_grad and n.endswith("weight")}

# %% 23.5 counts frozen ones
def names_that_decay(module):
    kinds = (nn.Linear, nn.Conv2d)
    matrices = {id(m.weight) for m in module.modules() if isinstance(m, kinds)}
    return {n for n, p in module.named_parameters() if id(p) in matrices}

# %% 23.5 takes the biases of linear layers too
def names_that_decay(module):
    kinds = (nn.Linear, nn.Conv2d)
    inside = {id(p) for m in module.modules() if isinstance(m, kinds) for p in m.parameters()}
    return {n for n, p in module.named_parameters() if p.requires_grad and id(p) in inside}

# %% 23.6 keeps the living tensors
def remember(model, optimizer, generator):
    weights, moments, drawn = model.state_dict(), optimizer.state_dict(), generator.get_state()

    def back():
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        generator.set_state(drawn)

    return back

# %% 23.6 forgets the moments
def remember(model, optimizer, generator):
    weights, drawn = copy.deepcopy(model.state_dict()), generator.get_state()

    def back():
        model.load_state_dict(weights)
        generator.set_state(drawn)

    return back

# %% 23.6 forgets the random stream
def remember(model, optimizer, generator):
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def back():
        model.load_state_dict(state[0])
        optimizer.load_state_dict(copy.deepcopy(state[1]))

    return back

# %% 23.6 gives its copy of the moments away
def remember(model, optimizer, generator):
    weights, moments = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    drawn = generator.get_state()

    def back():
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        generator.set_state(drawn)

    return back

# %% 23.6 keeps parameters without running means
def remember(model, optimizer, generator):
    weights = [p.detach().clone() for p in model.parameters()]
    moments, drawn = copy.deepcopy(optimizer.state_dict()), generator.get_state()

    def back():
        for p, w in zip(model.parameters(), weights):
            p.data.copy_(w)
        optimizer.load_state_dict(copy.deepcopy(moments))
        generator.set_state(drawn)

    return back
