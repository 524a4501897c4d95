"""What is no job: refused whole, by the number of the row or the image, and nothing is kept."""

import csv
import io
import tracemalloc
from collections.abc import Callable

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.clinic.questions_file import BadQuestions, read_questions
from tests.clinic.jobs import scan, send
from tests.clinic.test_rendering import ct

A, B, SAME = scan(1), scan(2), scan(1)
TWO = [("a.png", A), ("b.png", B)]
LONG = "x" * 2001

BAD_FILES = [
    ("", "the file is empty"),
    ("\n\n", "has no column image"),
    ("image,question\n", "no question under it"),
    ("image,question\n,\n", "no question under it"),
    ("image,question,qestion\na.png,What?,\n", "the header's column 3 is not known"),
    ("image,image,question\na.png,b.png,What?\n", "has image twice"),
    ("image,choices\na.png,\n", "has no column question"),
    ('image,question\na.png,"What?\n', "is no CSV"),
    ("image,question\na.png,Wh\0at?\n", "null characters"),
    (b"image,question\na.png,\xff\n", "not UTF-8 (byte 21)"),
    ("image,question\na.png,Left, or right?\nb.png,What?\n", "row 2: 3 cells under 2 columns"),
    ("image,question\na.png,What?\nc.png,What?\n", "row 3: image is neither the name nor"),
    ("image,question\na.png,What?\nb.png,\n", "row 3: the question must have at least one"),
    (f"image,question\na.png,What?\nb.png,{LONG}\n", "row 3: the question has 2001 characters"),
    ("image,question\na.png,<|im_end|>\nb.png,What?\n", "row 2: the question holds text of"),
    ("image,question,choices\na.png,What?,one\nb.png,What?,\n", "row 2: one choice given"),
    ("image,question,choices\na.png,?,\nb.png,?,a|\n", "row 3: the choice 2 must have"),
    ("image,question,choices\na.png,?,\nb.png,?,a|A\n", "row 3: two choices have the same"),
    ("image,question,k\na.png,?,17\nb.png,?,\n", "row 2: k is 17"),
    ("image,question,k\na.png,?,-1\nb.png,?,1.5\n", "row 2: k is no whole number from 0 on; row 3"),
    ("image,question,verify\na.png,?,perhaps\nb.png,?,no\n", "row 2: verify is none of true"),
    ("image,question,seed\na.png,?,9007199254740992\nb.png,?,\n", "row 2: 0 to 9007199254740991"),
    ("image,question\na.png,What?\n", "image 2 is asked nothing"),
    ("image,question\n" + "a.png,?\n" * 21 + "b.png,?\n", "22 questions; at most 20"),
    ("image,question\n" + "c.png,?\n" * 12, "row 9: image is neither"),
    ("image,question\n" + "c.png,?\n" * 12, "and 4 more"),
]


@pytest.fixture
def jobs(start_clinic: Callable[..., httpx.Client], valkey_url: str) -> httpx.Client:
    return start_clinic(redis_url=valkey_url, max_job_items=20, max_job_bytes=100_000)


def nothing_was_kept(jobs: httpx.Client) -> bool:
    listed = [jobs.get("/v1/jobs").json()["jobs"], jobs.get("/v1/cases").json()["cases"]]
    return listed == [[], []]


def test_a_file_of_questions_with_a_mistake_is_refused_whole(jobs: httpx.Client):
    for questions, said in BAD_FILES:
        problem = send(jobs, TWO, questions)

        assert problem.status_code == 422, (questions, problem.text)
        detail = problem.json()["detail"]
        assert said in detail, (questions, detail)
        for secret in ("a.png", "c.png", "What?", "qestion"):
            assert secret not in detail
    assert nothing_was_kept(jobs)


def test_a_form_with_a_mistake_is_refused_whole(jobs: httpx.Client):
    twins = [("a.png", A), ("a.png", B)]
    by_name = "image,question\na.png,What?\n"
    refused = [
        (send(jobs, [], question="What?"), 422, "body.images: Field required"),
        (send(jobs, TWO), 422, "give either question"),
        (send(jobs, TWO, by_name, question="What?"), 422, "give either question"),
        (send(jobs, TWO, by_name, choices=["a", "b"]), 422, "choices are a column"),
        (send(jobs, TWO, question=" "), 422, "at least one character"),
        (send(jobs, TWO, question="What?", k="0"), 422, "k is 0"),
        (send(jobs, TWO, question="What?", qestion="?"), 422, "unknown field 'qestion'"),
        (send(jobs, TWO, question=["What?", "Where?"]), 422, "question is given twice"),
        (send(jobs, twins, by_name), 422, "row 2: image is the name of several uploaded files"),
        (send(jobs, [("a", b"")], question="What?"), 422, "image 1: the image file has no bytes"),
        (send(jobs, [*TWO, ("c", b"no image")], question="What?"), 415, "image 3: "),
        (send(jobs, TWO[:1] * 21, question="What?"), 422, "21 images given; at most 20"),
        (send(jobs, [("a", bytes(2_000_000))], question="What?"), 413, "has more than the"),
    ]

    for problem, status, said in refused:
        assert problem.status_code == status, problem.text
        assert said in problem.json()["detail"]
        assert "a.png" not in problem.text
    assert nothing_was_kept(jobs)


def test_an_image_over_the_limit_of_one_is_named(
    start_clinic: Callable[..., httpx.Client], valkey_url: str
):
    jobs = start_clinic(redis_url=valkey_url, max_upload_bytes=2000)

    problem = send(jobs, [TWO[0], ("big", bytes(2001))], question="What?")

    assert problem.status_code == 413
    assert problem.json()["detail"] == "image 2 has 2001 bytes; at most 2000 are accepted"
    assert nothing_was_kept(jobs)


def test_an_image_that_zoom_refuses_is_named_by_its_row(jobs: httpx.Client):
    questions = "image,question\na.png,What?\nb.png,What?\nb.png,Where?\n"

    problem = send(jobs, [TWO[0], ("b.png", B[:80])], questions)

    assert problem.status_code == 422
    assert "row 3: " in problem.json()["detail"]
    assert "row 4: " in problem.json()["detail"]
    assert "row 2: " not in problem.json()["detail"]
    assert nothing_was_kept(jobs)


def test_a_row_says_which_picture_of_a_file_is_meant(jobs: httpx.Client):
    volume = [("a.dcm", ct(3))]
    questions = "image,question,frame,window\na.dcm,What?,2,\na.dcm,What?,3,brain\n"

    job = send(jobs, volume, questions, window="lung").json()

    assert job["num_items"] == 2
    first, second = (item["image_sha256"] for item in job["items"])
    assert first != second
    without = send(jobs, volume, question="What?")
    assert without.status_code == 422
    assert without.json()["detail"].startswith("image 1: ")
    assert "3 frames" in without.json()["detail"]
    for cells, said in (("0,lung", "row 2: frame: "), ("1,x-ray", "row 2: window: ")):
        refused = send(jobs, volume, f"image,question,frame,window\na.dcm,What?,{cells}\n")
        assert said in refused.json()["detail"]


def test_files_of_the_same_bytes_are_one_image(jobs: httpx.Client):
    twins = [("a.png", A), ("a.png", SAME)]

    job = send(jobs, twins, "image,question\na.png,What?\n").json()

    assert [item["image_number"] for item in job["items"]] == [1]


@pytest.mark.parametrize(
    "content", ["image,question\n" + "\n" * 2**19, "a,b\n" * 2**17, "," * 2**19]
)
def test_a_small_file_takes_little_memory(content: str):
    tracemalloc.start()
    try:
        with pytest.raises(BadQuestions):
            read_questions(content.encode(), {}, 10)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(content)
    finally:
        tracemalloc.stop()


@settings(suppress_health_check=list(HealthCheck), max_examples=300)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_questions_or_refused(content: bytes):
    for header in (b"", b"image,question,choices,k,seed\n"):
        try:
            rows, wrong = read_questions(header + content, {"a": 1}, 10)
        except BadQuestions:
            continue
        assert rows or wrong
        assert all(row.image_number == 1 for row in rows)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
            st.integers(0, 99),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_what_a_csv_writer_writes_is_read_as_it_was(rows: list[tuple[str, int]]):
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["image", "question", "seed"])
    writer.writerows(("a", question, seed) for question, seed in rows)

    read, wrong = read_questions(file.getvalue().encode(), {"a": 1}, 10)

    assert wrong == {}
    assert [(row.question, row.seed) for row in read] == [(q.strip(), s) for q, s in rows]
    assert [row.line for row in read] == list(range(2, len(rows) + 2))
