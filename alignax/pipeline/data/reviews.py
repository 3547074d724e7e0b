"""Requests for one-sentence reviews: prompts of the sentiment task."""

THINGS = (
    "a film that you saw last night",
    "the food in a small restaurant",
    "a hotel by the sea",
    "a novel that a friend lent you",
    "the new phone in your pocket",
    "a concert in the park",
    "the train that you take to work",
    "a pair of running shoes",
    "the coffee at the corner",
    "a museum in your town",
    "a video game that you finished",
    "the bicycle that you bought",
    "a play at the theatre",
    "the service of your bank",
    "a holiday in the mountains",
    "the office chair at your desk",
    "a cooking class",
    "the city's public library",
    "a winter coat",
    "an album that you heard today",
)
REQUESTS = (
    "Write one sentence about {}.",
    "In one sentence, review {}.",
    "Tell a friend in one sentence what you think of {}.",
    "Write a short comment of one sentence on {}.",
    "Describe {} in a single sentence.",
)


def review_prompts() -> list[dict[str, str]]:
    """A hundred requests for a review, the same ones always; none asks for praise.

    Returns:
      records with ``prompt`` and ``thing``, what is to be reviewed.

    Example:
      >>> records = review_prompts()
      >>> len(records), records[0]["prompt"]
      (100, 'Write one sentence about a film that you saw last night.')
    """
    return [
        {"prompt": request.format(thing), "thing": thing}
        for thing in THINGS
        for request in REQUESTS
    ]
