// kernel.py rewrites the definition   threadgroup T name[N];   in a kernel body into
//   typedef T name__tg[N]; threadgroup name__tg &name = MSL_TG(name__tg, number, "name");
#pragma once
#if MSL_CHECK
template <typename A> threadgroup A &msl_threadgroup_reference();
#define MSL_TG(TYPE, NUMBER, NAME) msl_threadgroup_reference<TYPE>()
#else
template <typename T> struct msl_array {
  typedef T element;
};
template <typename T, ulong N> struct msl_array<T[N]> {
  typedef typename msl_array<T>::element element;
};
template <typename T> T &msl_threadgroup_reference(int number, const char *name, ulong align) {
  typedef typename ::metal::vector_traits<typename msl_array<T>::element>::elem Element;
  return *(T *)msl_threadgroup_variable(number, name, sizeof(T), sizeof(Element), align);
}
#define MSL_TG(TYPE, NUMBER, NAME) msl_threadgroup_reference<TYPE>(NUMBER, NAME, alignof(TYPE))
#endif
