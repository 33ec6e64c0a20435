"""Keys of metrics.json in words: what a person reads where a program reads a key."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = {
    r"discrepancy/(\w+)/per_prompt": "how uneven {} is, prompt by prompt",
    r"discrepancy/(\w+)/pooled": "how uneven {} is, all prompts together",
    r"discrepancy/(\w+)/worst": "how uneven {} is in the worst prompt",
    r"discrepancy/(\w+)/soft": "how uneven {} is, by the judge's probabilities",
    r"discrepancy/(\w+)/rms": "how uneven {} is, without what chance adds",
    r"discrepancy/(\w+)/corrected": "how uneven {} is, without what chance and the judge's errors add",
    r"discrepancy/(\w+)/floor": "how uneven {} looks by chance in a fair model",
    r"discrepancy/(\w+)/heldout": "how uneven {} is in prompts that training never saw",
    r"discrepancy/(\w+)/unjudged_prompts": "prompts that show nobody ({})",
    r"recall/overall": "prompts that name a group are obeyed",
    r"recall/(\w+)/(.+)": "prompts that name {} are obeyed: {1}",
    r"recall/(\w+)": "prompts that name {} are obeyed",
    r"alignment/(\w+)": "the image shows the {} asked for",
    r"share/(\w+)/(.+)": "share of {1}",
    r"seconds_per_image": "seconds that an image takes",
    r"fid/generic": "Fréchet distance of images without people to the base model's",
    r"fid/source": "Fréchet distance to the originals",
    r"fid/balanced": "Fréchet distance to a balanced population",
    r"fid/(\w+)": "Fréchet distance to real images: {}",
    r"kid/source": "kernel distance to the originals",
    r"kid/balanced": "kernel distance to a balanced population",
    r"id_distance/(.+)": "distance to the original: {}",
    r"ssim(?:/\w+)?": "likeness of structure (SSIM)",
    r"psnr(?:/\w+)?": "likeness of pixels (PSNR, dB)",
    r"lpips(?:/\w+)?": "perceptual difference (LPIPS)",
    r"perceptual/\w+": "perceptual difference, embedded judge",
    r"clip_i/tiny": "likeness of content (embedded judge, not CLIP)",
    r"clip_i(?:/\w+)?": "likeness of content (CLIP-I)",
    r"quality": "image quality (MUSIQ)",
    r"loss/val/(\w+)": "loss on held-out data: {}",
    r"reward_accuracy/val": "held-out pairs whose winner is preferred",
    r"reward_accuracy/implicit": "held-out pairs whose winner gained more",
    r"confidence/(\w+)/detected": "confidence in each {} that is found",
    r"confidence/(\w+)": "confidence in each {} asked for",
    r"detection_rate/(\w+)": "share of {}s that are found",
    r"score/(.+)": "score by {}",
    r"win_rate/(.+)": "how often {} prefers the trained model",
    r"group_accuracy/overall": "judged as the group asked for: everybody",
    r"group_accuracy/(.+)": "judged as the group asked for: {}",
    r"anonymization/accuracy": "share of faces that are hidden",
    r"anonymization/accuracy/worst": "faces that are hidden, in the worst group",
    r"anonymization/accuracy/gap": "how much groups differ in what is hidden",
    r"anonymization/accuracy/gap_by_chance": "probability that chance alone differs as much",
    r"anonymization/accuracy/gap: (.+) < (.+)": "how much less {} is hidden than {1}",
    r"anonymization/failure_relative/(.+)": "failures beside those of untouched photographs: {}",
    r"anonymization/accuracy/one_threshold": "faces that are hidden, at one threshold for all",
    r"anonymization/accuracy/(.+)": "faces that are hidden: {}",
    r"anonymization/threshold(?:/one)?": "distance below which two faces match",
    r"distance/(mean|min|max)": "distance to the original: {}",
    r"retrieval/top1/source": "found among the originals at the first guess",
    r"retrieval/top1/identity": "found by another image of the person at the first guess",
    r"retrieval/top(\d+)/source": "found among the originals, first {} guesses",
    r"retrieval/top(\d+)/identity": "found by another image of the person, first {} guesses",
    r"retrieval/top(\d+)/source/(parrot|excluder)": "found by an attacker who knows the method ({1}), guesses: {}",
    r"retrieval/top(\d+)/source/own_alignment": "found with the attacker's own alignment, first guesses: {}",
    r"retrieval/top(\d+)/source/(.+)/(.+)": "found among the originals, first {} guesses: {2}",
    r"retrieval/chance/top1/(.+)": "found by guessing at the first guess ({})",
    r"retrieval/chance/top(\d+)/(.+)": "found by guessing, first {} guesses ({1})",
    r"retrieval/map/(.+)": "mean average precision of the attack ({})",
    r"retrieval/place/(.+)": "place of the right person in the gallery ({})",
    r"retrieval/chance/place/(.+)": "place of the right person by guessing ({})",
    r"retrieval/tar/([\d.e-]+)/(.+)": "verified at a false-accept rate of {} ({1})",
    r"retrieval/gallery/(.+)": "people in the gallery ({})",
    r"id_similarity": "similarity to the original",
    r"id_similarity/random": "similarity of two different people",
    r"id_similarity/random/alike": "similarity of two different people who look alike",
    r"id_similarity/(\w+)/(.+)": "similarity to the original: {1}",
    r"diversity/similarity": "similarity of the new faces of one image",
    r"diversity/similarity/strangers": "similarity of strangers",
    r"kept/(\w+)": "{} as in the original",
    r"preservation/(\w+)": "change of {}",
    r"preservation/(\w+)/random": "difference of {} between strangers",
    r"redaction/strength": "strength of blur or pixels that hides as much",
    r"recomposed/error": "error of redrawing a face as itself",
    r"recomposed/autoencoder": "the autoencoder's part of that error",
    r"identity/cosine": "similarity of the new identity to the old",
    r"identity/rebuilt": "how well an identity is rebuilt",
    r"recognized/originals": "two originals of one person match",
    r"recognized/originals/(.+)": "two originals of one person match: {}",
}
_PATTERNS = [(re.compile(pattern), said.replace("{}", "{0}")) for pattern, said in _WORDS.items()]


def words(key: str, recognizers: tuple[str, ...] = ()) -> str:
    """A key of metrics.json in words; a key that nobody has put into words stays as it is.

    Args:
        key: See docs/metrics.md.
        recognizers: Names that `fairanon evaluate` hangs to keys; they are left out.

    Examples:
        >>> words("discrepancy/gender/per_prompt")
        'how uneven gender is, prompt by prompt'
        >>> words("share/expression/smiling"), words("distance/min/dlib", ("dlib",))
        ('share of smiling', 'distance to the original: min')
    """
    if name := recognizer_of(key, recognizers):
        key = key.removesuffix(f"/{name}")
    for pattern, phrase in _PATTERNS:
        if match := pattern.fullmatch(key):
            first, *rest = (*match.groups(), "")
            return phrase.format(first.replace("_", " "), *(part.replace("_", " ") for part in rest))
    return key


def recognizer_of(key: str, recognizers: Sequence[str]) -> str | None:
    """Which recognizer's a number is; None: it is no recognizer's.

    Examples:
        >>> recognizer_of("distance/min/dlib", ("arcface", "dlib")), recognizer_of("ssim", ("dlib",))
        ('dlib', None)
    """
    return next((name for name in recognizers if key.endswith(f"/{name}")), None)


_NEEDS = {
    r"lpips.*": "needs the extra `eval` (pip install 'fairanon[eval]') and AlexNet's weights, see docs/first-real-run.md",
    r"quality": "needs MUSIQ's package and weights, see docs/first-real-run.md",
    r"preservation/.*": "the judge of geometry saw no face",
    r"discrepancy/.*": "nobody is to be seen in any of the images",
    r"clip_i.*": "needs a CLIP judge, see experiments/judges",
}


def missing_needs(key: str) -> str:
    """What would measure a number that was not measured.

    Examples:
        >>> missing_needs("preservation/pose")
        'the judge of geometry saw no face'
    """
    return next((need for pattern, need in _NEEDS.items() if re.fullmatch(pattern, key)), "no judge here can say")
