/* The standard names of what MLX takes from BLAS, for an OpenBLAS that has its own ones.

Needs no library, so that the result depends on nothing but the architecture. wheel.py points
mlx_tlstm_<name> at the functions before anybody can call. */

#define FORWARD(name, scalar, element)                                                         \
    void (*mlx_tlstm_##name)(int, int, int, int, int, int, scalar, const element *, int,       \
                             const element *, int, scalar, element *, int);                    \
    void cblas_##name(int order, int left, int right, int rows, int columns, int depth,        \
                      scalar alpha, const element *a, int a_stride, const element *b,          \
                      int b_stride, scalar beta, element *c, int c_stride)                     \
    {                                                                                          \
        mlx_tlstm_##name(order, left, right, rows, columns, depth, alpha, a, a_stride, b,      \
                         b_stride, beta, c, c_stride);                                         \
    }

FORWARD(sgemm, float, float)
FORWARD(dgemm, double, double)
FORWARD(cgemm, const void *, void)
