// One of eight buffers of one type.
template <typename Buffer>
METAL_FUNC Buffer pick(
    int i, Buffer b0, Buffer b1, Buffer b2, Buffer b3, Buffer b4, Buffer b5, Buffer b6, Buffer b7) {
  switch (i) {
    case 0: return b0;
    case 1: return b1;
    case 2: return b2;
    case 3: return b3;
    case 4: return b4;
    case 5: return b5;
    case 6: return b6;
    default: return b7;
  }
}
