"""The prompts of a class list: templates x name x contexts.

Free of torch: prompts are checked before models are loaded.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from beamclip.prompts.classes import ClassEntry
from beamclip.prompts.config import PromptConfig
from beamclip.prompts.contexts import ContextSource, class_contexts
from beamclip.prompts.templates import fill, resolve_templates


def class_prompts(
    classes: Sequence[ClassEntry],
    config: PromptConfig,
    external_sources: Mapping[str, ContextSource] | None = None,
) -> list[list[str]]:
    """Make the prompts of each class, in order: templates x contexts, or templates x bare name.

    Args:
        external_sources: the context sources that need more than the class list, by name.

    Raises:
        InputError: a template cannot be used, or contexts are requested and there are none.
    """
    templates = resolve_templates(config.templates)
    contexts = class_contexts(classes, config.context_source, config.num_contexts, external_sources)
    slots = [_slots(entry, own) for entry, own in zip(classes, contexts, strict=True)]
    return [[fill(template, slot) for template in templates for slot in of_class] for of_class in slots]


def _slots(entry: ClassEntry, contexts: Sequence[str]) -> list[str]:
    return [f"{entry.name}, {context}" for context in contexts] or [entry.name]


def count_alike(prompts: Sequence[Sequence[str]]) -> tuple[int, int]:
    """Count the distinct sets of prompts, and the classes that share theirs with another class.

    Prompts that differ only in case or in runs of spaces count as equal: tokenizers remove both.
    """
    counts = Counter(
        frozenset(" ".join(prompt.lower().split()) for prompt in of_class) for of_class in prompts
    )
    return len(counts), sum(number for number in counts.values() if number > 1)
