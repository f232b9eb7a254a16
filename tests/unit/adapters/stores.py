"""A store that counts its calls and can be cut at any one of them."""


class Cut(BaseException):
    """Stands for the death of the process: nothing may catch it."""


class Counting:
    """Passes every call on; `cut_at` n dies before call n, `after` lets call n happen first."""

    def __init__(self, store, cut_at=None, after=False):
        self._store = store
        self.calls = []
        self.cut_at = cut_at
        self.after = after
        self.fail_next_put = False

    def __getattr__(self, name):
        method = getattr(self._store, name)

        def call(*args):
            self.calls.append((name, next(a for a in args if isinstance(a, str))))
            if name == "put" and self.fail_next_put:
                raise ConnectionError("cut")
            dying = len(self.calls) == self.cut_at
            if dying and not self.after:
                raise Cut
            try:
                return method(*args)
            finally:
                if dying:
                    raise Cut

        return call
