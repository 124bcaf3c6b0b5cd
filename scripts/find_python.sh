#!/bin/sh
# Print the Python that epan shall use: the one named as the argument, else python3 when it is fit,
# else the newest of python3.14 ... python3.11. When there is none, say why on stderr and exit 1.
check=$(dirname "$0")/check_python.py

if [ -n "${1:-}" ]; then
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "PYTHON=$1 is not a command on this machine. Give the name or the path of a Python 3.11 to 3.14." >&2
        exit 1
    fi
    "$1" "$check" || { echo "PYTHON=$1 cannot be used." >&2; exit 1; }
    echo "$1"
    exit 0
fi

# A name on PATH may be a shim of a version manager that runs nothing: only an answer counts.
for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" "$check" >/dev/null 2>&1; then
        echo "$candidate"
        exit 0
    fi
done

for candidate in python3 python; do
    if command -v "$candidate" >/dev/null 2>&1; then
        "$candidate" "$check" >&2 || exit 1
    fi
done
echo "No Python was found. epan needs Python 3.11 to 3.14: install one, or name it: make demo PYTHON=/path/to/python3.13" >&2
exit 1
