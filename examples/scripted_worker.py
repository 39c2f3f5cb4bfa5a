#!/usr/bin/env python3
"""An example worker: takes the scheduler's command line, writes result rows for its data_ids, needs no GPU and no model.

What a worker has to keep, and this one does:

  * it works on the data_ids of [--low, --high) that the input holds, in ascending order, and never goes back to one;
  * it writes generation_results_data_{low}_to_{high}_real.csv in --output_path: a header, then the rows of one
    data_id appended together. A data_id may have no rows at all. No rows anywhere: no file;
  * it exits 0 only when all of them are done. A scheduler that starts it again gives it another --output_path, so it
    never has to read what an earlier attempt left.

The rows are made up, but from the input alone: however the work is cut into ranges, however often an attempt is
repeated, a data_id gets the same bytes. That makes this worker a check of whatever runs it, and the options under
"misbehaviour" make it fail in the ways real workers do:

  auto-scheduler run --input-path examples/data/prediction_comparison.csv --output-path output/try --num-workers 4 \\
      --gpus sim:8 --worker "python3 examples/scripted_worker.py --crash-at 17 --crash-times 1"
"""
import _csv as csv  # the part of `csv` that reads and writes; what is left out would double the start-up time
import io
import os
import sys
import time

HEADER = ["data_id", "token_id", "real_token", "real_text", "pred_small_token", "pred_small_text",
          "small_diverge_text", "reference_diverge_text", "common_context"]

# Text that CSV writers and readers get wrong: separators, quotes, line ends, other scripts, and plain words that
# some readers take for numbers or for nothing.
PIECES = [" the", " so", ",", " \"quoted\"", "\n", "。", "因此", " NA", "02", " then, \"next\"", "答案是", " naïve",
          "None", " x = 3;", "\n\n", "？", " 🙂", "'", "null", " done.", "\t", "——", "\"", " end"]
ENDINGS = [" and that settles it.", ", \"or so\" it seems, at first.\n", "，所以答案是“七”。", " which is 3, not 4.\n\nNext,",
           " — a \"quoted, comma\" here.", "\n因为左边等于右边，证毕。", " 7.", ""]


# --- the worker -------------------------------------------------------------------------------------------------------

def whole_number(text):
    try:
        return int(text)
    except ValueError:
        return int(float(text))  # pandas writes 12.0 where a column once held a gap


def load(path, low, high):
    """The input's rows by data_id, in the file's order; a data_id alone where the token columns are missing."""
    csv.field_size_limit(1 << 30)
    samples, known = {}, {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        names = next(rows)
        at = names.index("data_id")
        wanted = ["token_id", "token_type", "real_token", "SLM_predictions"]
        columns = [names.index(name) for name in wanted] if set(wanted) <= set(names) else None
        for row in rows:
            if not row:
                continue
            data_id = known.get(row[at])
            if data_id is None:
                data_id = known[row[at]] = whole_number(row[at])
            if low <= data_id < high:
                tokens = samples.setdefault(data_id, [])
                if columns:
                    tokens.append([whole_number(row[column]) for column in columns])
    return samples, columns is not None


def mismatches(tokens, max_tokens, think_end):
    """(token_id, real token, predicted token) wherever the small model guessed another next token than the real one."""
    first = next((i for i, token in enumerate(tokens) if token[1] > 0), 0)
    if first == 0 or len(tokens) > max_tokens:
        return []  # no answer, no instruction before it, or too long
    kept = tokens[first:]
    found = [(after[0], after[2], now[3]) for now, after in zip(kept, kept[1:])
             if now[3] != after[2] and after[2] != think_end]
    return sorted(found, key=lambda mismatch: mismatch[0])


def rows_of(data_id, found, num_samples):
    for token_id, real, predicted in found:
        text, guess = PIECES[real % len(PIECES)], PIECES[predicted % len(PIECES)]
        context = "".join(PIECES[(data_id + k) % len(PIECES)] for k in range(token_id % 7))
        reference = context + "<<" + text + ">>" + ENDINGS[(data_id + token_id) % len(ENDINGS)]
        for sample in range(num_samples):
            diverged = context + "<<" + guess + ">>" + ENDINGS[(predicted + token_id + sample) % len(ENDINGS)]
            yield [data_id, token_id, real, text, predicted, "<<" + guess + ">>", diverged, reference, context]


def record(fields):
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields)
    return line.getvalue().encode()


class Results:
    """The result file. It appears with its first row, and what `append` returned from is on disk."""

    def __init__(self, folder, low, high, header, fsync):
        self.path = os.path.join(folder, f"generation_results_data_{low}_to_{high}_real.csv")
        self.header, self.fsync, self.file, self.last = header, fsync, None, b""

    def append(self, records):
        if not records:
            return
        if self.file is None:
            self.file = open(self.path, "wb")
            self.file.write(record(self.header))
        self.file.write(b"".join(records))
        self.last = records[-1]
        self.sync(self.file)

    def shorten(self, by):
        if self.file is not None and by:
            self.file.truncate(self.file.tell() - by)
            self.sync(self.file)

    def write_full_copy(self, cut=False):
        if self.file is None:
            return
        with open(self.path, "rb") as file:
            content = file.read()
        with open(self.path.replace("_real.csv", "_real_full.csv"), "wb") as file:
            file.write(content[:len(content) // 2] if cut else content)
            self.sync(file)

    def sync(self, file):
        file.flush()
        if self.fsync:
            os.fsync(file.fileno())


def main():
    args = Arguments(sys.argv[1:])
    script = Script(args)
    say = script.say
    say("Loading input data...")
    samples, has_tokens = load(args.input_path, args.low, args.high)
    say(f"Processing {len(samples)} samples of data_id [{args.low}, {args.high})")
    os.makedirs(args.output_path, exist_ok=True)
    with open(os.path.join(args.output_path, "args.json"), "w") as file:
        file.write(f'{{"low": {args.low}, "high": {args.high}, "num_samples": {args.num_samples}}}\n')
    results = Results(args.output_path, args.low, args.high, script.header(), not args.no_fsync)
    script.reach("start", results, [])
    started, written = time.monotonic(), 0
    for data_id in sorted(samples):
        if has_tokens and args.rows_per_id is None:
            found = mismatches(samples[data_id], args.max_tokens, args.think_end_id)
        else:
            found = [(k, 100 + k, 200 + data_id % 50 + k) for k in range(2 if args.rows_per_id is None else args.rows_per_id)]
        records = script.change(data_id, list(rows_of(data_id, found, args.num_samples)))
        written += len(records)
        pause = started + written / args.rate - time.monotonic() if args.rate else 0
        time.sleep(max(0, pause) + args.delay_per_id)
        script.reach(data_id, results, records)
        if not args.no_result:
            results.append(records)
        script.passed(data_id)
        say(f"Processed data_id {data_id}")
    script.at_end(results)
    say(f"Saved results to {results.path}" if results.file else "No rows to save")
    script.reach("end", results, [])
    sys.exit(args.exit)


# --- the script: everything below is there to go wrong on purpose ---------------------------------------------------

class Script:
    def __init__(self, args):
        self.args = args
        self.range = os.environ.get("R2R_WORKER_RANGE", f"{args.low}_{args.high}")
        state_dir = args.state_dir
        if state_dir is None:  # OUT/attempts/0_10.1 -> OUT: attempts of one run have to meet somewhere
            folder = os.path.abspath(args.output_path)
            parent = os.path.dirname(folder)
            out = os.path.dirname(parent) if os.path.basename(parent) == "attempts" else folder
            state_dir = os.path.join(out, "scripted_worker")
        self.state_dir = state_dir
        self.returning = b""
        start = self.count(f"start_{self.range}") if args.fail_first or args.only_first else 0
        if args.only_first and start > args.only_first:
            args.set_defaults(MISBEHAVIOUR)
        if args.ignore_term or args.exit0_on_term:
            import signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN if args.ignore_term else lambda *_: os._exit(0))
        if args.pid_file:
            self.note_pid("worker", os.getpid())
        if args.print_env:
            for name, value in sorted(os.environ.items()):
                if name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "TMPDIR") or name.startswith(("R2R_", "AUTO_SCHEDULER_")):
                    print(f"{name}={value}", flush=True)
        if args.grandchild:
            self.leave_grandchild()
        self.flood()
        if start <= args.fail_first and args.fail_first:
            print(f"failing on purpose: start {start} of {self.range}", file=sys.stderr, flush=True)
            sys.exit(1)

    def say(self, line):
        if not self.args.silent:
            print(line, flush=True)

    def header(self):
        return HEADER[:-1] + ["context"] if self.args.wrong_header else HEADER

    def change(self, data_id, rows):
        """The rows of one data_id as the script wants them written."""
        args = self.args
        if data_id in args.skip_id:
            rows = []
        if data_id in args.short_id:
            rows = rows[:-1]
        if data_id in args.swallow_error_at:
            print("Error during batch generation: the engine is gone", file=sys.stderr, flush=True)
            for row in rows:
                row[6] = ""
        records = [record(row) for row in rows]
        if args.lone_cr:  # as Python before 3.13 writes it: the field stays without quotes
            records = [line[:-1] + b" 50%\r100%\n" if not line.endswith(b'"\n') else line for line in records]
        if data_id == args.revisit_id:
            self.returning = records[-1] if records else b""
        return records

    def reach(self, place, results, records):
        """Arrived at a data_id whose rows are not written yet, or at `start` or `end`."""
        args = self.args
        if args.wait_for and place == args.wait_at:
            self.say(f"Waiting for {args.wait_for}")
            while not os.path.exists(args.wait_for):
                time.sleep(0.005)
        if place in args.crash_at and args.crash_when != "after" and self.may_crash(place):
            if args.crash_when == "mid" and records and not args.no_result:
                keep = len(records[-1]) // 2 if args.torn_bytes is None else args.torn_bytes
                results.append(records[:-1] + [records[-1][:keep]])
            self.die()
        if place in args.hang_at:
            self.hang()

    def passed(self, place):
        if place in self.args.crash_at and self.args.crash_when == "after" and self.may_crash(place):
            self.die()

    def at_end(self, results):
        args = self.args
        if args.foreign_id is not None:
            results.append([record(row) for row in rows_of(args.foreign_id, [(1, 2, 3)], 1)])
        if self.returning:
            results.append([self.returning])
        if args.torn_tail:
            results.shorten(len(results.last) // 2)
            self.last_words()
            sys.exit(args.exit or 1)
        if args.no_final_newline:
            results.shorten(1)
        if not args.no_full:
            results.write_full_copy(cut=args.torn_full)

    def may_crash(self, place):
        limit = self.args.crash_times
        return limit is None or self.count(f"crash_{place}", limit) > 0

    def count(self, name, limit=None):
        """1 for the first call with this name, in whatever process, 2 for the second; 0 above the limit."""
        os.makedirs(self.state_dir, exist_ok=True)
        number = 1
        while limit is None or number <= limit:
            try:
                os.close(os.open(os.path.join(self.state_dir, f"{name}.{number}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return number
            except FileExistsError:
                number += 1
        return 0

    def last_words(self):
        if self.args.last_words:
            print(self.args.last_words, file=sys.stderr, flush=True)

    def die(self):
        self.last_words()
        how = self.args.crash_how
        if how == "abort":
            os.abort()
        elif how.startswith("exit:"):
            os._exit(int(how[len("exit:"):]))
        os.kill(os.getpid(), 11 if how == "segv" else 9)

    def hang(self):
        self.last_words()
        while True:
            time.sleep(0.1)
            if self.args.hang_talking:
                print("still working", flush=True)

    def flood(self):
        args = self.args
        for amount, unit in [(args.flood, b"flood " * 13 + b"\n"), (args.flood_line, b"flood "),
                             (args.flood_cr, b"progress 50%\r"), (args.flood_binary, bytes(range(256)))]:
            block = unit * (65536 // len(unit))
            while amount > 0:
                amount -= os.write(1, block[:amount])

    def leave_grandchild(self):
        """A process that neither our group, nor our session, nor our environment leads to; `sleep` ends it at last."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
            if self.args.grandchild_ignores_term:
                import signal
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(writer, str(os.getpid()).encode())
            os.close(writer)
            os.execve("/bin/sleep", ["sleep", "3600"], {})
        os.close(writer)
        os.waitpid(child, 0)
        pid = int(os.read(reader, 20))
        os.close(reader)
        if self.args.pid_file:
            self.note_pid("grandchild", pid)

    def note_pid(self, role, pid):
        file = os.open(self.args.pid_file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        os.write(file, f"{role} {pid} {self.range}\n".encode())  # one write: lines of parallel workers stay whole
        os.close(file)


# --- the command line -----------------------------------------------------------------------------------------------

def switch(text):
    raise ValueError("takes no value")


def duration(text):
    for unit, seconds in (("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)):
        if text.endswith(unit):
            return float(text[:-len(unit)]) * seconds
    return float(text)


def size(text):
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper())
    return int(float(text[:-1]) * factor) if factor else int(text)


def ids(text):
    return [int(part) for part in text.split(",")]


def place(text):
    return text if text in ("start", "end") else int(text)


def places(text):
    return [place(part) for part in text.split(",")]


def crash_way(text):
    if text in ("kill", "abort", "segv") or (text.startswith("exit:") and text[5:].isdigit()):
        return text
    raise ValueError("kill, abort, segv or exit:CODE")


def crash_moment(text):
    if text in ("before", "mid", "after"):
        return text
    raise ValueError("before, mid or after")


# name: (type, default, what --help says of its value, and of itself)
REQUIRED = object()
GIVEN = {
    "input_path": (str, REQUIRED, "FILE", "the input CSV; data_id may be any of its columns"),
    "output_path": (str, REQUIRED, "DIR", "where the result file goes"),
    "low": (int, REQUIRED, "ID", "the first data_id of the range"),
    "high": (int, REQUIRED, "ID", "the first data_id after it"),
    "max_tokens": (int, 32768, "N", "samples with more rows are passed over"),
    "num_samples": (int, 1, "N", "rows per mismatch"),
}
PLAIN = {
    "rate": (float, 0.0, "ROWS", "rows per second"),
    "delay-per-id": (duration, 0.0, "D", "wait before the rows of each data_id (50ms, 2s)"),
    "rows-per-id": (int, None, "K", "K rows per data_id, not one per mismatch (2 where the input has no tokens)"),
    "think-end-id": (int, -1, "N", "the token that is never a mismatch"),
    "no-fsync": (switch, False, "", "do not fsync after each data_id"),
    "silent": (switch, False, "", "print no progress"),
    "print-env": (switch, False, "", "print what the scheduler put into the environment"),
    "pid-file": (str, None, "FILE", "append `worker PID RANGE` (and `grandchild PID RANGE`)"),
    "wait-for": (str, None, "FILE", "wait until FILE exists ..."),
    "wait-at": (place, "start", "PLACE", "... at this place (default: start)"),
    "only-first": (int, None, "N", "misbehave in the first N starts of a range only"),
    "state-dir": (str, None, "DIR", "where starts and crashes are counted (default: scripted_worker in the run's"
                                    " output folder)"),
}
MISBEHAVIOUR = {
    "crash-at": (places, [], "PLACE,...", "die there, in the middle of the last row"),
    "crash-how": (crash_way, "kill", "HOW", "kill (default), abort, segv or exit:CODE"),
    "crash-when": (crash_moment, "mid", "WHEN", "before the data_id's first byte, mid: in its last row (default), or"
                                                " after its rows"),
    "crash-times": (int, None, "N", "only the first N times that anyone gets there (default: every time)"),
    "torn-bytes": (int, None, "N", "how much of the torn row is written (default: half of it)"),
    "hang-at": (places, [], "PLACE,...", "stay there for ever, silently"),
    "hang-talking": (switch, False, "", "... and keep printing"),
    "last-words": (str, None, "TEXT", "print this to stderr before a crash, a hang or a torn end"),
    "fail-first": (int, 0, "N", "the first N starts of a range exit 1 before any row"),
    "exit": (int, 0, "CODE", "exit status once everything is written"),
    "torn-tail": (switch, False, "", "cut the last row in half at the end, exit 1 (or what --exit says)"),
    "torn-full": (switch, False, "", "write half of the _real_full.csv copy"),
    "no-full": (switch, False, "", "write no _real_full.csv copy"),
    "no-final-newline": (switch, False, "", "leave out the last line end"),
    "no-result": (switch, False, "", "write no result file"),
    "wrong-header": (switch, False, "", "another name for the last column"),
    "skip-id": (ids, [], "ID,...", "write no rows for it"),
    "short-id": (ids, [], "ID,...", "write one row too few for it"),
    "foreign-id": (int, None, "ID", "add a row of this data_id at the end"),
    "revisit-id": (int, None, "ID", "write a row of it again at the end"),
    "swallow-error-at": (ids, [], "ID,...", "log an error and write empty text, as if nothing was wrong"),
    "lone-cr": (switch, False, "", "write bare carriage returns in unquoted fields"),
    "ignore-term": (switch, False, "", "ignore SIGTERM"),
    "exit0-on-term": (switch, False, "", "exit 0 on SIGTERM, wherever that is"),
    "flood": (size, 0, "BYTES", "print that much in lines first (K, M, G)"),
    "flood-line": (size, 0, "BYTES", "print that much without a line end"),
    "flood-cr": (size, 0, "BYTES", "print that much as a progress bar does, with \\r alone"),
    "flood-binary": (size, 0, "BYTES", "print that much that is not text"),
    "grandchild": (switch, False, "", "leave a process behind: own session, no parent, empty environment, holds our"
                                      " stdout"),
    "grandchild-ignores-term": (switch, False, "", "... that ignores SIGTERM"),
}
SECTIONS = [("given by the scheduler (others are accepted and ignored)", GIVEN), ("pace and bookkeeping", PLAIN),
            ("misbehaviour; PLACE is a data_id (its rows are ready, none is written), `start` (before any row) or `end`"
             " (everything is written)", MISBEHAVIOUR)]


class Arguments:
    """The last of a repeated flag wins; a flag that is not in the tables is skipped, with its value if it has one."""

    def __init__(self, words):
        known = {**GIVEN, **PLAIN, **MISBEHAVIOUR}
        self.set_defaults(known)
        at = 0
        while at < len(words):
            name, equals, value = words[at][2:].partition("=")
            if words[at] in ("-h", "--help"):
                print_help()
                sys.exit(0)
            kind = known.get(name, (None,))[0] if words[at].startswith("--") else None
            if kind is switch and not equals:
                setattr(self, name.replace("-", "_"), True)
            elif kind is not None:
                if not equals:
                    at += 1
                    value = words[at] if at < len(words) else usage_error(f"--{name} needs a value")
                try:
                    setattr(self, name.replace("-", "_"), kind(value))
                except ValueError as error:
                    usage_error(f"--{name} {value}: {error}")
            at += 1
        for name, (_, default, _, _) in GIVEN.items():
            if getattr(self, name) is REQUIRED:
                usage_error(f"--{name} is missing")

    def set_defaults(self, table):
        for name, (_, default, _, _) in table.items():
            setattr(self, name.replace("-", "_"), default)


def usage_error(text):
    print(f"scripted_worker.py: {text}; see --help", file=sys.stderr)
    sys.exit(2)


def print_help():
    print(__doc__)
    for title, table in SECTIONS:
        print(f"{title}:")
        for name, (_, _, value, meaning) in table.items():
            print(f"  {'--' + name + ' ' + value:<32}{meaning}")
        print()


if __name__ == "__main__":
    main()
