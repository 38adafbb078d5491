"""A network at the speed of the machine: `optimize` tries what is installed, checks it and keeps the fastest.

    fast = ziggurat.optimize(model, images)      # prints what was tried
    scores, levels = fast(images), fast.pyramid(images)
"""
