# To be sourced by bash: a Python that can build rota, and virtual environments of it.
# Messages, and what others print, go to standard error.

# Print the path of a Python >= 3.10 that can make virtual environments and compile
# extensions. As root on Debian, install what is missing; elsewhere, say what to install.
rota_python() {
  local packages="python3 python3-venv python3-dev gcc libc6-dev" log
  if rota_find_python; then return 0; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing $packages" >&2
    # shellcheck disable=SC2086
    if ! log=$({ apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends $packages; } 2>&1 < /dev/null); then
      echo "$log" >&2
    fi
    if rota_find_python; then return 0; fi
  fi
  {
    echo "No Python >= 3.10 with venv, headers and a C compiler. Found:"
    echo "${rota_tried:-  no Python at all}"
    echo "On Debian or Ubuntu: apt-get install $packages"
  } >&2
  return 1
}

# Print the path of the first Python that will do; else set rota_tried to why each will not.
rota_find_python() {
  local python path answer
  rota_tried=
  for python in python3 /usr/bin/python3 python3.{14,13,12,11,10}; do
    path=$(command -v "$python") || continue
    if answer=$(rota_check_python "$path" 2>&1); then
      echo "${answer##*$'\n'}"
      return 0
    fi
    rota_tried+=${rota_tried:+$'\n'}"  $path: ${answer##*$'\n'}"
  done
  return 1
}

# Print the path of the Python at $1 itself, which may be behind a wrapper, where it will
# do; else fail, and the last line printed says why not.
rota_check_python() {
  "$1" -I - << 'END'
import os, shlex, subprocess, sys, sysconfig
if sys.version_info < (3, 10):
    sys.exit("it is Python %d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit(f"it cannot make virtual environments: {error}")
compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
include = sysconfig.get_path("include")
code = b"#include <Python.h>\n"
try:
    subprocess.run([*compiler, "-I", include, "-fsyntax-only", "-x", "c", "-"], input=code,
                   check=True, capture_output=True)
except FileNotFoundError:
    sys.exit(f"no C compiler: {compiler[0]}")
except subprocess.CalledProcessError as error:
    sys.exit(f"no headers for C: {error.stderr.decode(errors='replace').splitlines()[0]}")
print(sys.executable)
END
}

# Make the virtual environment at $1, with a recent pip, unless there is one that works.
rota_venv() {
  if "$1/bin/python" -m pip --version > /dev/null 2>&1; then return 0; fi
  local python
  python=$(rota_python) || return 1
  "$python" -m venv --clear "$1" >&2 || return 1
  "$1/bin/python" -m pip install --quiet --upgrade pip >&2
}
