def selftest(small): pass
