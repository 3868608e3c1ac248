"""Generated corpora that come with their ground truth."""

from homunculi.text.worlds.belief import BeliefState, Event, simulate
from homunculi.text.worlds.stories import PLOTS, Story, StoryConfig, documents, story

__all__ = ["PLOTS", "BeliefState", "Event", "Story", "StoryConfig", "documents", "simulate", "story"]
