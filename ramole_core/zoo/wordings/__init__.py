"""How the prompts of each adapter are worded: nine wordings for each of the 40 adapters.

A wording has one place `{}` for the word. Of the nine, the first five are for training (and for the
samples that describe the adapter), the next two for development only, the last two for the test
only. Siblings share the function and partly the word domain; scenes and turns of phrase overlap
between families on purpose, so that the wording tells an encoder of sentences less than everything.
"""

from ramole_core.zoo.wordings.answering import ANSWERING
from ramole_core.zoo.wordings.rewriting import REWRITING

WORDINGS: dict[str, tuple[str, ...]] = REWRITING | ANSWERING
