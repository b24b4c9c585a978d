"""What generated prompts are about, and how they ask: everyday things, in one short sentence."""

from __future__ import annotations

from random import Random

# fmt: off
TOPICS: tuple[str, ...] = (
    "rivers", "bread", "bicycles", "winter", "the moon", "coffee", "gardens", "music", "trains", "cats",
    "dogs", "the ocean", "mountains", "cooking", "football", "painting", "sleep", "libraries", "rain",
    "horses", "chess", "bees", "summer", "cheese", "maps", "stars", "shoes", "tea", "bridges", "forests",
    "friendship", "school", "apples", "running", "dancing", "clouds", "books", "birds", "islands",
    "cameras", "honey", "swimming", "trees", "markets", "wool", "glass", "clocks", "kites", "museums",
    "soup", "deserts", "boats", "snow", "candles", "theatre", "gold", "rice", "castles", "holidays",
    "breakfast", "lakes", "owls", "salt", "radio", "paper", "butterflies", "hiking", "potatoes",
    "windmills", "volcanoes", "letters", "jazz",
)
# fmt: on

REQUESTS = (
    "Tell me something about {topic}.",
    "Write a short text about {topic}.",
    "Describe {topic} to a child.",
    "Give me some facts about {topic}.",
    "Why do people like {topic}?",
    "Write a short advertisement for {topic}.",
    "What should I know about {topic}?",
)


def request(random: Random, topic: str) -> str:
    """A sentence that asks for a text about a topic."""
    return random.choice(REQUESTS).format(topic=topic)
