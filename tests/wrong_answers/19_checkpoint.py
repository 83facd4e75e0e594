"""Plausible wrong answers to the exercises of chapter 19: each replaces an answer cell."""
# %% 19.1 says that the first step is always one learning rate
def first_step(lr, beta1, beta2, n):
    return lr

# %% 19.1 forgets the corrections
def first_step(lr, beta1, beta2, n):
    return lr * (1 - beta1) / math.sqrt(1 - beta2)

# %% 19.1 forgets the square root
def first_step(lr, beta1, beta2, n):
    mean = (1 - beta1) / (1 - beta1 ** (n + 1))
    square = (1 - beta2) / (1 - beta2 ** (n + 1))
    return lr * mean / square

# %% 19.2 writes over the old file
def replaced(disk, name, text):
    disk.write(name, text)
    disk.flush(name)

# %% 19.2 mends the flush only
def replaced(disk, name, text):
    disk.delete(name)
    disk.write(name + ".partial", text)
    disk.flush(name + ".partial")
    disk.rename(name + ".partial", name)

# %% 19.2 flushes after the rename
def replaced(disk, name, text):
    disk.write(name + ".partial", text)
    disk.rename(name + ".partial", name)
    disk.flush(name)

# %% 19.2 keeps a copy and leaves it behind
def replaced(disk, name, text):
    disk.write(name + ".partial", text)
    disk.flush(name + ".partial")
    disk.write(name + ".old", disk.files[name])
    disk.flush(name + ".old")
    disk.rename(name + ".partial", name)

# %% 19.3 begins at the first row of all
def frame(delta, t, rows):
    return np.bitwise_xor.reduce(delta[:t + 1], axis=0)

# %% 19.3 forgets the row itself
def frame(delta, t, rows):
    begin = t - t % rows
    return np.bitwise_xor.reduce(delta[begin:t], axis=0)

# %% 19.3 adds in place of exclusive or
def frame(delta, t, rows):
    begin = t - t % rows
    return delta[begin:t + 1].sum(0, dtype=np.uint8)

# %% 19.3 looks one row back
def frame(delta, t, rows):
    return delta[t] ^ delta[t - 1] if t % rows else delta[t]

# %% 19.4 lets the other byte gain too
def forged(content, place, byte):
    changed, other = bytearray(content), (place + 1) % len(content)
    changed[other] = (changed[other] + byte - content[place]) % 256
    changed[place] = byte
    return bytes(changed)

# %% 19.4 changes the one byte only
def forged(content, place, byte):
    changed = bytearray(content)
    changed[place] = byte
    return bytes(changed)

# %% 19.4 appends the difference
def forged(content, place, byte):
    changed = bytearray(content)
    changed[place] = byte
    return bytes(changed) + bytes([(content[place] - byte) % 256])

# %% 19.5 counts a whole interval as lost
def best_interval(cost, between):
    return math.sqrt(cost * between)

# %% 19.5 forgets the square root
def best_interval(cost, between):
    return 2 * cost * between

# %% 19.5 saves as often as failures come
def best_interval(cost, between):
    return between / 2

# %% 19.6 unpacks first and looks afterwards
def unpacked(data, size):
    raw = zlib.decompress(data)
    if len(raw) != size:
        raise ValueError("another size")
    return raw

# %% 19.6 stops at the size and does not see the rest
def unpacked(data, size):
    raw = zlib.decompressobj().decompress(data, size)
    if len(raw) != size:
        raise ValueError("another size")
    return raw

# %% 19.6 does not look for the end
def unpacked(data, size):
    raw = zlib.decompressobj().decompress(data, size + 1)
    if len(raw) != size:
        raise ValueError("another size")
    return raw
