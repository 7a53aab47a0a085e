# Sourced by demo.sh and test.sh: makes and enters .venv in the checkout, installed as constraints.txt says.
# BOLDSTREAM_VENV names another folder for it; PYTHON another interpreter (3.11 or newer).
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${BOLDSTREAM_VENV:-$root/.venv}

enter_environment() { # enter_environment EXTRA...: install the package with extras, once per set of requirements
  local extras=$1 python=${PYTHON:-python3} stamp
  stamp=$(cat "$root/setup.cfg" "$root/constraints.txt" "$root/pyproject.toml" | sha256sum | cut -c1-16)-$extras
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $("$python" --version) found, Python 3.11 or newer needed; set PYTHON to one" >&2
    return 2
  fi
  if [ ! -e "$venv/.installed-$stamp" ]; then
    echo "installing into $venv (a few minutes the first time)"
    "$python" -m venv "$venv"
    # -c pins torch: without it pip takes the newest build and gigabytes of CUDA libraries
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root[$extras]" -c "$root/constraints.txt" \
      2> "$venv/pip.log" || { cat "$venv/pip.log" >&2; echo "error: installation failed; see above" >&2; return 1; }
    rm -f "$venv"/.installed-*
    touch "$venv/.installed-$stamp"
  fi
  export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
  unset PYTHONHOME
}
