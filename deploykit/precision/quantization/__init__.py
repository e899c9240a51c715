"""Q/DQ graphs: their making, and the choices that are tried out on images."""
