"""What people send us, read with suspicion: data sets (`datasets`) and checkpoints (`checkpoints`).

Knows files and limits, and no HTTP, database or store: streams and names come in, a validated file or folder and what
is to be said of it come out. A refusal is an `Invalid` or a `TooLarge` with a code, and a sentence that names the line.
"""
