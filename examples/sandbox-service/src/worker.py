# Waits with a Python that has started and has its usual modules. Each fork of the machine has its snippet in SNIPPET.
import builtins, collections, datetime, functools, gc, itertools, json, math, random, re, string, subprocess, sys, types


def snippet():
    # What is here so far stays: a fork does not write to its pages only to look for garbage.
    gc.collect()
    gc.freeze()
    waits = ["/run/coracle/snippet-waits", "branch-here"]
    printed = subprocess.run(waits, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout
    found = re.search(rb"(?:^|\n)export SNIPPET='((?:[^']+|'\\'')*)'\n", printed)
    # The state of this generator is that of all forks.
    random.seed()
    return found[1].replace(rb"'\''", b"'").decode()


def run(source):
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__builtins__ = builtins
    try:
        exec(compile(source, "<string>", "exec"), main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        # Without the frame of this function.
        error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


run(snippet())
