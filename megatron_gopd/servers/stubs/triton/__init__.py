from _stand_in import decorator, stand_in

stand_in(
    "triton",
    "3.5.0",
    jit=decorator,
    autotune=decorator,
    heuristics=decorator,
    cdiv=lambda a, b: -(a // -b),
    next_power_of_2=lambda n: 1 << (n - 1).bit_length() if n > 0 else 1,
)
