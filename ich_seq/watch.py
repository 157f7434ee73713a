"""watch: studies are predicted as they arrive, one after another, into a worklist that is always whole.

The loop looks at the source, works through what is ready, and waits. Each study is journaled when it is begun, and when
it has ended and all of it is on the disk; so a kill at any moment costs the study in work, which is done again.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path

from ich_seq import ArchiveError, IchSeqError, OutputError, UsageError, signals
from ich_seq.arrivals import Change, Stamp, compare
from ich_seq.bundle import Bundle, load_bundle
from ich_seq.devices import choose_device, choose_workers, keep_memory
from ich_seq.dicom_results import DicomResults, ResultSource, check_can_write, dicom_results_in
from ich_seq.files import locked_folder, short_hash, spare_others
from ich_seq.incoming import Folder, NamedFiles, Source, UnreachableError
from ich_seq.inputs import InputFile, check_input
from ich_seq.journal import BEGUN, ENDED, KEPT, SENDING, SENT, Journal
from ich_seq.prediction import made_by, predict_cases
from ich_seq.prediction_parts import cases_of
from ich_seq.progress import Progress, silent
from ich_seq.reasons import Reason, Unused
from ich_seq.report import StudyPrediction
from ich_seq.studies import Counts, Study, account, findings_of, read_headers
from ich_seq.weight_library import bundle_folder
from ich_seq.worklist import (
    FAILED,
    FOLDERS,
    JOURNAL,
    PREDICTED,
    UNUSABLE,
    Also,
    Pages,
    Record,
    Worked,
    Worklist,
    folder_of,
)

MOST_IN_A_ROW = 3
"""So many studies one after another that end in a bug of ours, cannot be had or be sent: then it is not the studies."""

PASSING = {Reason.UNREADABLE, Reason.CHANGED}
"""Verdicts that may be of the moment, such as when files are moved or a share is gone."""

BROKEN_OFF = "An earlier watch did not see it arrive."
AGAIN = f"To have it tried again end the watch, remove its folder in {FOLDERS}/ and watch again."

Send = Callable[[Path, bool], None]
"""Sends a study's folder on; is told whether an earlier sending may have arrived.

Raises IchSeqError if it fails, and that as UnreachableError if others would fail as well.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyNews:
    """What became of a study just now: its record, where its results lie, and whether it was worked through before."""

    record: Record
    folder: Path
    again: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchSummary:
    """What lies in the folder of results when a watch ends.

    `failed` are studies that could not be worked through, `unsent` those whose results could not be sent on.
    """

    out: Path
    studies: int
    failed: int
    unsent: int
    counts: Counts


def watch(
    source: str | Path | Source,
    bundle: str | Path,
    out: str | Path,
    *,
    quiet_s: float = 60.0,
    every_s: float = 5.0,
    once: bool = False,
    engine: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    shown: Pages | None = None,
    also: Also | None = None,
    send: Send | None = None,
    tell: Callable[[StudyNews], object] = lambda news: None,
    warn: Callable[[str], object] = lambda sentence: None,
    progress: Progress = silent,
) -> WatchSummary:
    """Predict each study that arrives in the folder `source` once none of its files appeared or changed for `quiet_s`.

    It is looked at every `every_s` seconds (a `Source` of yours has its own quiet time), without end; with `once` until
    all that was there at the first look is worked through. `out` is as `worklist` has it, and `shown` says what is in
    its pages. A study of which more files come is done again and its older result replaced; one whose older files have
    gone meanwhile keeps it. `also` writes more into a study's folder; `send` sends it on, once, again when that fails
    (with `once` by the next watch). `tell` hears of each study, `warn` what somebody should know. Raises UsageError,
    ArtefactError and OutputError as `predict` does, or if `out` was made by another bundle; and what failed
    MOST_IN_A_ROW studies one after another.
    """
    if not (0 <= quiet_s < inf and 0 < every_s < inf):
        raise UsageError(f"A quiet time of {quiet_s:g} s, or looks every {every_s:g} s, cannot be meant.")
    bundle, out, shown = bundle_folder(Path(bundle)), Path(out), shown or Pages()
    workers = choose_workers(workers)
    if isinstance(source, (str, Path)):
        check_input(Path(source), out)
        if not Path(source).is_dir():
            raise UsageError(f"{source} is no folder; give the one into which DICOM files are dropped.")
        hidden, read = not shown.phi, workers
        source = Folder(Path(source), quiet_s, skip=out, hide_names=hidden, workers=read, progress=progress)
    if not (out / JOURNAL).exists():
        spare_others(out)
    if shown.sr:
        check_can_write()
    keep_memory()
    loaded = load_bundle(bundle, choose_device(device), engine)
    with locked_folder(out):
        watching = _Watch(
            source=source,
            bundle=loaded,
            worklist=Worklist(out, loaded, made_by(loaded), shown),
            journal=Journal(out / JOURNAL),
            workers=workers,
            phi=shown.phi,
            also=_together(partial(_file_results, ResultSource.of(loaded)) if shown.sr else None, also),
            send=send,
            tell=tell,
            warn=warn,
            progress=progress,
            once=once,
        )
        watching.run(every_s)
        return watching.summary()


def _together(*writers: Also | None) -> Also:
    """Return what writes all that is to be written into a study's folder."""

    def write(folder: Path, study: Study, prediction: StudyPrediction) -> None:
        for writer in writers:
            if writer is not None:
                writer(folder, study, prediction)

    return write


def _file_results(made_by: ResultSource, folder: Path, study: Study, prediction: StudyPrediction) -> None:
    """Write the DICOM objects of a study into its folder, or why it has none."""
    results = DicomResults(folder, made_by)
    results.write_study(study, prediction)
    results.close()


def send_results(url: str, folder: Path, unsure: bool) -> None:
    """Store the DICOM objects of a study's folder in an archive: `watch` has it as `send`.

    They have the same UIDs whenever they are sent, so being `unsure` makes no difference: the archive has each once.
    Raises ArchiveError if it does not take all of them, UnreachableError if it may be gone.
    """
    from ich_seq.dicomweb import send

    sent = send(url, dicom_results_in(folder))
    if sent.refused:
        refusal = UnreachableError if sent.lost else ArchiveError
        raise refusal(f"The archive did not take {len(sent.refused)} results: {sent.refused[0][1]}")


@dataclass(frozen=True, slots=True)
class _Task:
    """A study that is to be worked through: its files as they were taken, and by a hash of their names."""

    study_uid: str
    taken: Mapping[str, Stamp]
    files: Mapping[str, str]
    again: bool

    @property
    def key(self) -> str:
        """Return what stands for the study with just these files."""
        return short_hash(repr((self.study_uid, sorted(self.files.items()))))


@dataclass(kw_only=True, slots=True)
class _Watch:
    """A watch at work."""

    source: Source
    bundle: Bundle
    worklist: Worklist
    journal: Journal
    workers: int
    phi: bool
    also: Also
    send: Send | None
    tell: Callable[[StudyNews], object]
    warn: Callable[[str], object]
    progress: Progress
    once: bool
    failed_in_a_row: int = 0
    unreached_in_a_row: int = 0
    lost: str = ""
    unsent: dict[str, str] = field(default_factory=dict)
    listed: Mapping[str, Unused] | None = None

    def run(self, every_s: float) -> None:
        """Look, work and wait; without end, or until what was there at the first look is done."""
        self.worklist.take_up(self.journal)
        if self.send is not None:
            self.unsent = self._left_unsent()
        wanted: set[str] | None = None
        while True:
            looked = time.monotonic()
            if self._look():
                wanted = self.source.arrivals.waiting() if wanted is None else wanted
                self._work(until=looked + every_s)
            self._send_on(until=inf if self.once else looked + every_s)
            if self.once and not (wanted or set()) & self.source.arrivals.waiting():
                self.worklist.write_slices()
                return
            time.sleep(max(0.0, looked + every_s - time.monotonic()))

    def summary(self) -> WatchSummary:
        """Say what there is by now."""
        records = self.worklist.records.values()
        return WatchSummary(
            out=self.worklist.out,
            studies=sum(record.result is not None for record in records),
            failed=sum(record.fate == FAILED for record in records),
            unsent=len(self.unsent),
            counts=self.worklist.counts(self.source.strays.values()),
        )

    def _look(self) -> bool:
        """Look at the source; tell whether it could be seen, and warn once when it can no more."""
        try:
            self.source.look(time.monotonic())
        except UnreachableError as error:
            if self.once:
                raise
            self._lose(error)
            return False
        if self.lost:
            self.warn("It is there again.")
            self.lost = ""
        if self.listed != self.source.strays:
            self._write()
        return True

    def _lose(self, error: UnreachableError) -> None:
        if self.lost != str(error):
            self.lost = str(error)
            self.warn(f"{error} Waiting for it.")

    def _write(self) -> None:
        self.listed = dict(self.source.strays)
        self.worklist.write(self.listed.values())

    def _work(self, until: float) -> None:
        """Work through what is ready, one study at least, until it is time to look again or the source is lost."""
        done = 0
        while ready := self.source.arrivals.ready():
            self._see_to(ready[0])
            done += 1
            self.progress("studies that are ready", done, done + len(ready) - 1)
            if self.lost or time.monotonic() >= until:
                return

    def _see_to(self, study_uid: str) -> None:
        """Work a study through, if its files are not those that its result was made of."""
        taken = self.source.arrivals.take(study_uid)
        files = {short_hash(name): f"{stamp.size} {stamp.modified_ns}" for name, stamp in taken.items()}
        older = self.worklist.records.get(study_uid)
        task = _Task(study_uid, taken, files, again=older is not None)
        change = compare(self.worklist.made_of(study_uid), files)
        if change == Change.PARTED and older is not None and older.result is not None:
            self._keep(task)
        elif change != Change.NONE:
            self.journal.note(BEGUN, study_uid, task.key, again=task.again)
            if (worked := self._worked(task)) is None:
                self.source.arrivals.give_back(study_uid)
            else:
                self._end(task, worked)

    def _keep(self, task: _Task) -> None:
        """Let a study have its result, as what is there now is not all of it; warn once."""
        if self.journal.key_of(KEPT, task.study_uid) != task.key:
            self.journal.note(KEPT, task.study_uid, task.key)
            self.warn(
                f"Study {task.study_uid}: more files came after older ones had gone; its result stays as it is. "
                "Put all its files there to have it done again."
            )

    def _worked(self, task: _Task) -> Worked | None:
        """Predict a study and write its folder; None if its files went or changed, so that nothing can be said yet."""
        named: NamedFiles = []
        try:
            with self.source.files(task.study_uid, task.taken) as named:
                worked = self._predicted(task, named)
                passing = {u.file for u in worked.unused if u.reason in PASSING}
                if passing and not self._still_there(task):
                    return None
                self.worklist.put(worked, self._made_of(task, worked, passing), self.also)
        except UnreachableError as error:
            self._lose(error)
            self.unreached_in_a_row += 1
            if self.once and self.unreached_in_a_row >= MOST_IN_A_ROW:
                raise
            return None
        except OutputError:
            raise
        except Exception as error:
            if signals.exit_code() is not None:  # some library made an error of the signal
                raise
            return self._failed(task, named, error)
        self.failed_in_a_row = self.unreached_in_a_row = 0
        return worked

    def _failed(self, task: _Task, named: NamedFiles, error: Exception) -> Worked:
        """List a study as failed; so many in a row are the machine's fault or ours, and then the watch ends."""
        worked = _made_of_failure(task, named, error)
        self.worklist.put(worked, task.files)
        self.warn(f"Study {task.study_uid} failed: {worked.record.reason}")
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= MOST_IN_A_ROW:
            self._end(task, worked)
            raise error
        return worked

    def _made_of(self, task: _Task, worked: Worked, passing: Set[str]) -> dict[str, str]:
        """Return the files of a study but for those whose verdict may pass, which the next watch takes for new.

        So it does with all of a study that did not come.
        """
        if worked.predicted is None and any(u.reason == Reason.NOT_FETCHED for u in worked.unused):
            return {}
        names = {short_hash(name) for name in passing} if self.phi else passing
        return {name: stamp for name, stamp in task.files.items() if name not in names}

    def _still_there(self, task: _Task) -> bool:
        self.source.look(time.monotonic())
        return self.source.arrivals.files(task.study_uid) == task.taken

    def _predicted(self, task: _Task, named: NamedFiles) -> Worked:
        files, unsent = [f for f in named if isinstance(f, InputFile)], [u for u in named if isinstance(u, Unused)]
        findings, refused = findings_of(read_headers(files, workers=self.workers), unsent), list[Unused]()
        cases = list(cases_of(findings).values())
        all_said = predict_cases(cases, self.bundle, refused, workers=self.workers, phi=self.phi, progress=silent)
        predicted: tuple[Study, StudyPrediction] | None = None
        for case, said in all_said:
            if (study := case.study).uid == task.study_uid:
                number = self.journal.number_of(short_hash(study.patient_id))
                predicted = study, replace(said, result=replace(said.result, patient=number))
        unused, counts = account(findings, refused)
        record = Record(
            study_uid=task.study_uid,
            key=task.key,
            fate=UNUSABLE if predicted is None else PREDICTED,
            reason=f"no usable slice ({counts.named_reasons or 'no files'})" if predicted is None else "",
            counts=counts,
            result=None if predicted is None else predicted[1].result,
        )
        return Worked(record, unused, predicted)

    def _end(self, task: _Task, worked: Worked) -> None:
        """Journal that a study has ended, write the tables and pages of all, and tell of it."""
        record, patient = worked.record, {}
        if worked.predicted is not None:
            study, said = worked.predicted
            patient = {"patient_key": short_hash(study.patient_id), "patient": said.result.patient}
            if self.send is not None:
                self.unsent[record.study_uid] = ""
        self.journal.note(ENDED, record.study_uid, record.key, fate=record.fate, **patient)
        self._write()
        folder = self.worklist.out / folder_of(record.study_uid)
        self.tell(StudyNews(record=record, folder=folder, again=task.again))

    def _left_unsent(self) -> dict[str, str]:
        """Return the studies whose results earlier watches did not send, or may not have."""
        key_of, records = self.journal.key_of, sorted(self.worklist.records.items())
        left = {uid: r.key for uid, r in records if r.result is not None and key_of(SENT, uid) != r.key}
        return {uid: BROKEN_OFF if key_of(SENDING, uid) == key else "" for uid, key in left.items()}

    def _send_on(self, until: float) -> None:
        """Send what was not sent yet: first what was never tried, until it is time to look again or nobody answers.

        What is refused keeps nothing else back; it is tried again after the next look.
        """
        lost_in_a_row = 0
        for study_uid in sorted(self.unsent, key=lambda uid: self.unsent[uid] != ""):
            told = self.unsent.pop(study_uid)
            try:
                self._deliver(study_uid)
                lost_in_a_row = 0
            except OutputError:
                raise
            except IchSeqError as refusal:
                if str(refusal) not in (told, *self.unsent.values()):
                    self.warn(f"Study {study_uid} cannot be sent: {refusal} It is tried again.")
                self.unsent[study_uid] = str(refusal)
                lost_in_a_row = lost_in_a_row + 1 if isinstance(refusal, UnreachableError) else 0
                if lost_in_a_row >= MOST_IN_A_ROW or time.monotonic() >= until:
                    return

    def _deliver(self, study_uid: str) -> None:
        """Send a study's results, if it still has any."""
        record, folder = self.worklist.records[study_uid], self.worklist.out / folder_of(study_uid)
        if self.send is not None and record.result is not None:
            self.journal.deliver(study_uid, record.key, partial(self.send, folder))


def _made_of_failure(task: _Task, named: NamedFiles, error: Exception) -> Worked:
    """Return what is kept of a study that an error ended; the error's text is told only if it is of ours."""
    reason = str(error)
    if not isinstance(error, IchSeqError):
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"a bug of ich-seq, {type(error).__name__} in {Path(where.filename).name}:{where.lineno}."
    detail = f"The study could not be worked through: {reason} {AGAIN}"
    unused = [Unused(file, Reason.FAILED, detail, task.study_uid) for file in sorted({source.file for source in named})]
    counts = Counts(
        files=len(unused), used=0, excluded=0, rejected=len(unused), reasons={str(Reason.FAILED): len(unused)}
    )
    record = Record(study_uid=task.study_uid, key=task.key, fate=FAILED, reason=reason, counts=counts)
    return Worked(record, sorted(unused, key=lambda u: u.file))
