"""What results mean, in plain sentences: the first thing that a person reads."""

from collections.abc import Mapping, Sequence

from adautomix.class_results import ClassResult, ClassResults
from adautomix.reporting.comparison import Comparison
from adautomix.reporting.formatting import points, shorten_list

WIDE = 0.15  # width of the interval of the accuracy from which a test set says little
FEW = 10  # test images of a class below which its accuracy is not worth ranking
PLAIN = "vanilla"

STUDENT = "the trained network itself"
TEACHER = "the moving average of the trained weights"


def best_network(results: Mapping[str, ClassResults]) -> str:
    """Return the name of the network with the best results; of equals the teacher."""
    return max(results, key=lambda name: (_main(results[name]), name == "teacher"))


def _main(results: ClassResults) -> float:
    precision = results.mean_average_precision
    return results.accuracy if precision is None else precision


def plain_sentence(results: ClassResults) -> str:
    """Return how many test photos are right, with the interval, and the weakest class."""
    right = f"{results.correct:,} of {results.images:,} test photos"
    low, high = results.interval
    share = percent_of(results.correct, results.images)
    detail = f"({share} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
    if not results.multi_label:
        return f"Right on {right} {detail}; {_weakest(results)}."
    return (
        f"Mean average precision {100 * (results.mean_average_precision or 0):.1f} % over the "
        f"{len(results.present)} classes that occur; the most likely label is right on {right} "
        f"{detail}; {_weakest(results)}."
    )


def percent_of(correct: int, images: int) -> str:
    """Return a percentage that says 100 only if all are right, and 0 only if none is."""
    value = 100 * correct / images
    for places in range(1 if images >= 1000 else 0, 4):
        text = f"{value:.{places}f}"
        if (float(text) == 100) == (correct == images) and (float(text) == 0) == (correct == 0):
            return text
    return f"{value:.4f}"


def _weakest(results: ClassResults) -> str:
    first = next(iter(results.weakest_first), None)
    if first is None:
        return "no class occurs"
    if first.average_precision is not None:
        score = f"average precision {100 * first.average_precision:.1f} %"
        return f"weakest class: {first.name}, {score}"
    if first.correct == first.images:
        return "no class has a wrong photo"
    return f"weakest class: {first.name}, {count_of(first)}"


def count_of(one: ClassResult) -> str:
    """Return "5 of 8": the photos of a class that are right."""
    return f"{one.correct:,} of {one.images:,}"


def network_sentence(results: Mapping[str, ClassResults]) -> str:
    """Return which network the plain sentence is about, and how the other did; "" for one."""
    if set(results) != {"student", "teacher"}:
        return ""
    best = best_network(results)
    student, teacher = (results[name].correct for name in ("student", "teacher"))
    if best == "teacher":
        return (
            f"These are the answers of the teacher, {TEACHER}, which the "
            "commands predict and export use. "
            f"The student, {STUDENT}, is right on {student:,}."
        )
    lagging = results["teacher"].interval[1] < results["student"].accuracy
    return (
        f"These are the answers of the student, {STUDENT}. The teacher, {TEACHER}, is right on "
        f"{teacher:,}{'; in a short run the average lags behind' if lagging else ''}. "
        "The commands predict and export use the teacher unless given --network student."
    )


def cautions(results: ClassResults) -> list[str]:
    """Return what the test set cannot tell, one sentence per reason."""
    low, high = results.interval
    lines = []
    if high - low > WIDE:
        lines.append(
            f"{results.images:,} test photos say little: on new photos like these, between "
            f"{100 * low:.0f} and {100 * high:.0f} % may be right. Test on more photos before "
            "choosing between methods or settings."
        )
    few = [one for one in results.present if one.images < FEW]
    if few:
        everything = len(results.classes)
        has = "has" if len(few) == 1 else "have"
        some = f"Of the {everything} classes, {len(few)} {has}"
        which = f"All {everything} classes have" if len(few) == everything else some
        lines.append(f"{which} fewer than {FEW} test photos: their order says little.")
    if results.absent:
        names = shorten_list(results.absent, 6)
        lines.append(f"The test photos show nothing about classes without any: {names}.")
    return lines


def worse_than_plain(comparison: Comparison) -> list[str]:
    """Return one sentence per method that is worse than plain training, with what to try."""
    lines = []
    labels = dict.fromkeys(test.method for test in comparison.tests if test.baseline == PLAIN)
    for label in labels:
        tests = [
            test
            for test in comparison.tests
            if (test.method, test.baseline, test.metric) == (label, PLAIN, "top1")
        ]
        differences = {test.network: test.interval for test in tests}
        found = [f"{points(one.mean)} points ({name})" for name, one in differences.items() if one]
        if not found or any(one and one.mean >= 0 for one in differences.values()):
            continue
        certain = all(test.conclusion == "significantly worse" for test in tests)
        doubt = "" if certain else ", though not significantly"
        lines.append(
            f"{label} is worse than {PLAIN}, plain training, here{doubt}: {' and '.join(found)}. "
            "Mixing slows learning and pays off in long training: try twice the --epochs, then a "
            "simpler method such as mixup or cutmix; for short training, use plain training."
        )
    return lines


def class_lines(results: ClassResults, limit: int = 5) -> list[str]:
    """Return the weakest classes and the most frequent confusions, one line each."""
    weak = [one for one in results.weakest_first if one.correct < one.images][:limit]
    lines = []
    if len(weak) > 1:
        named = ", ".join(f"{one.name} {count_of(one)}" for one in weak)
        lines.append(f"Weakest classes: {named}.")
    names = [one.name for one in results.classes]
    confused = [
        f"{names[one.label]} as {names[one.predicted]} ({one.images:,})"
        for one in results.confusions[:limit]
    ]
    if confused:
        lines.append(f"Most often confused: {', '.join(confused)}.")
    return lines


def all_lines(results: Mapping[str, ClassResults]) -> Sequence[str]:
    """Return the sentences that the command prints about both networks, the verdict first."""
    best = results[best_network(results)]
    sentences = [plain_sentence(best), network_sentence(results), *class_lines(best)]
    return [line for line in sentences if line] + [f"Note: {line}" for line in cautions(best)]
