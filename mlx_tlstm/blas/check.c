/* check LIBRARY FORWARDS: prints "right" where products through the forwarded names are.

A process of its own, since a library that does not fit may crash or hang. The factors are small
integers, so that every order of summation gives the same numbers. */

#include <dlfcn.h>
#include <stdio.h>

enum { ROWS = 97, COLUMNS = 65, DEPTH = 129, ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };

#define VALUE(x) x
#define ADDRESS(x) &x

#define CHECK(name, scalar, element, pass, unit)                                               \
    static element a_##name[ROWS * DEPTH], b_##name[DEPTH * COLUMNS], c_##name[ROWS * COLUMNS]; \
    static int check_##name(int rows, int columns, int depth, int left, int right)             \
    {                                                                                          \
        void (*product)(int, int, int, int, int, int, scalar, const void *, int, const void *, \
                        int, scalar, void *, int);                                             \
        *(void **)&product = dlsym(RTLD_DEFAULT, "cblas_" #name);                              \
        if (!product)                                                                          \
            return 0;                                                                          \
        int a_stride = left == PLAIN ? depth : rows, b_stride = right == PLAIN ? columns : depth; \
        element alpha = 2, beta = 3, *a = a_##name, *b = b_##name, *c = c_##name;              \
        for (int i = 0; i < rows * depth; i++)                                                 \
            a[i] = (i % 7 - 3) * (unit);                                                       \
        for (int i = 0; i < depth * columns; i++)                                              \
            b[i] = i % 5 - 2 + (unit) * (i % 3);                                               \
        for (int i = 0; i < rows * columns; i++)                                               \
            c[i] = i % 11;                                                                     \
        product(ROW_MAJOR, left, right, rows, columns, depth, pass(alpha), a, a_stride, b,     \
                b_stride, pass(beta), c, columns);                                             \
        for (int i = 0; i < rows; i++)                                                         \
            for (int j = 0; j < columns; j++) {                                                \
                element sum = 0;                                                               \
                for (int k = 0; k < depth; k++)                                                \
                    sum += a[left == PLAIN ? i * a_stride + k : k * a_stride + i] *            \
                           b[right == PLAIN ? k * b_stride + j : j * b_stride + k];            \
                if (c[i * columns + j] != alpha * sum + beta * ((i * columns + j) % 11))       \
                    return 0;                                                                  \
            }                                                                                  \
        return 1;                                                                              \
    }

CHECK(sgemm, float, float, VALUE, 1)
CHECK(dgemm, double, double, VALUE, 1)
CHECK(cgemm, const void *, float _Complex, ADDRESS, (1 + 1.0fi))

static int (*const CHECKS[])(int, int, int, int, int) = {check_sgemm, check_dgemm, check_cgemm};
static const char *const NAMES[] = {"sgemm", "dgemm", "cgemm"};

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    void *forwards = library ? dlopen(arguments[2], RTLD_NOW | RTLD_GLOBAL) : 0;
    if (!forwards) {
        puts(dlerror());
        return 1;
    }
    for (int i = 0; i < 3; i++) {
        char from[64], to[64];
        snprintf(from, sizeof from, "mlx_tlstm_%s", NAMES[i]);
        snprintf(to, sizeof to, "scipy_cblas_%s", NAMES[i]);
        void **pointer = (void **)dlsym(forwards, from), *function = dlsym(library, to);
        if (!pointer || !function) {
            printf("there is no %s\n", pointer ? to : from);
            return 1;
        }
        *pointer = function;
        for (int transposed = 0; transposed < 4; transposed++) {
            int left = transposed & 1 ? TRANSPOSED : PLAIN;
            int right = transposed & 2 ? TRANSPOSED : PLAIN;
            if (!CHECKS[i](3, 2, 5, left, right) || !CHECKS[i](ROWS, COLUMNS, DEPTH, left, right)) {
                printf("a product of %s is wrong\n", NAMES[i]);
                return 1;
            }
        }
    }
    puts("right");
    return 0;
}
