# To be sourced by bash, after bootstrap.sh: a free-threaded CPython (3.13t or later).
# Messages go to standard error.

rota_cache=${XDG_CACHE_HOME:-$HOME/.cache}/rota

# Debian packages no free-threaded CPython, but the source of 3.13 is in this release, and any
# mirror of Debian has it, whatever release the machine itself runs.
rota_source_suite=trixie
rota_source_package=python3.13

# What the build needs, and what of it ends up in modules that pip and the tests import.
rota_build_packages="gcc libc6-dev make xz-utils libffi-dev libssl-dev zlib1g-dev"

# Print the path of a free-threaded Python: $ROTA_FREETHREADED, or one on PATH, or our own.
rota_freethreaded() {
  local path answer
  if [ -n "${ROTA_FREETHREADED:-}" ]; then
    if answer=$(rota_check_freethreaded "$ROTA_FREETHREADED" 2>&1); then
      echo "${answer##*$'\n'}"
      return 0
    fi
    echo "ROTA_FREETHREADED=$ROTA_FREETHREADED will not do: ${answer##*$'\n'}" >&2
    return 1
  fi
  for path in python3.{14,13}t; do
    path=$(command -v "$path") || continue
    if answer=$(rota_check_freethreaded "$path" 2>&1); then
      echo "${answer##*$'\n'}"
      return 0
    fi
    echo "$path will not do: ${answer##*$'\n'}" >&2
  done
  rota_own_freethreaded
}

# Print the path of the free-threaded Python in the cache; build it where it is missing (5 to
# 10 minutes of one core, once).
rota_own_freethreaded() {
  local prefix=$rota_cache/${rota_source_package}t answer
  local path=$prefix/bin/${rota_source_package}t
  if ! rota_check_freethreaded "$path" > /dev/null 2>&1; then
    rota_build_freethreaded "$prefix" --with-ensurepip=install || {
      echo "No free-threaded Python: set ROTA_FREETHREADED to one, or mend what is said above." >&2
      return 1
    }
  fi
  if answer=$(rota_check_freethreaded "$path" 2>&1); then
    echo "${answer##*$'\n'}"
    return 0
  fi
  echo "the Python built in $prefix will not do: ${answer##*$'\n'}" >&2
  return 1
}

# The same, of the same version, with the thread sanitizer; for running things that the other
# has installed, since it takes ten times as long for everything.
rota_own_tsan() {
  local prefix=$rota_cache/${rota_source_package}t-tsan
  local path=$prefix/bin/${rota_source_package}t
  if ! [ -x "$path" ]; then
    rota_build_freethreaded "$prefix" --with-thread-sanitizer --without-ensurepip || return 1
  fi
  echo "$path"
}

# Print the path of the Python at $1 where it is free-threaded and has what venv, pip and the
# tests need; else fail, and the last line printed says what it lacks.
rota_check_freethreaded() {
  if ! command -v "$1" > /dev/null; then
    echo "there is no such program" >&2
    return 1
  fi
  "$1" -I - << 'END' || return 1
import sys, sysconfig
if not sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("it is not free-threaded")
for name in ("ctypes", "hashlib", "ssl", "zlib"):
    try:
        __import__(name)
    except ImportError as error:
        sys.exit(f"it was built without {name}: {error}")
END
  rota_check_python "$1"
}

# Build the source that Debian has, with these arguments for configure, and install it as $1,
# whole or not at all.
rota_build_freethreaded() {
  local prefix=$1 build status=1
  shift
  rota_build_tools || return 1
  mkdir -p "$rota_cache" && build=$(mktemp -d "$rota_cache/build.XXXXXX") || return 1
  if rota_fetch_source "$build" && rota_make "$build" "$prefix" "$@"; then status=0; fi
  rm -rf "$build"
  return "$status"
}

rota_make() {
  local build=$1 prefix=$2
  shift 2
  echo "building a free-threaded Python into $prefix: 5 to 10 minutes of one core, once" >&2
  # Each step by `&&`: `set -e` is of no effect within a condition.
  if ! (
    cd "$build" && mkdir source && tar -C source --strip-components 1 -xf ./*.orig.tar.xz &&
      cd source && ./configure --prefix="$prefix" --disable-gil --disable-test-modules "$@" &&
      rota_fixed_layout make -j "$(nproc)" &&
      # Modules are compiled when they are first imported: all of them at once take longer
      # than the build, with a sanitizer.
      rota_fixed_layout make install DESTDIR="$build/root" COMPILEALL_OPTS=--help &&
      rm -f "$build/root$prefix/lib"/*.a "$build/root$prefix/lib"/python3.*/config-*/*.a &&
      cp -r Tools/tsan "$build/root$prefix/"
  ) > "$build/log" 2>&1 < /dev/null; then
    tail -n 30 "$build/log" >&2
    echo "Building Python failed; above is the end of what was said." >&2
    return 1
  fi
  rm -rf "$prefix" && mv "$build/root$prefix" "$prefix"
}

# The thread sanitizer cannot map the memory of a program at some random places.
rota_fixed_layout() {
  if command -v setarch > /dev/null && setarch -R true 2> /dev/null; then
    setarch -R "$@"
  else
    "$@"
  fi
}

# Fetch the source's tarball into $1. apt checks it against the signed index, in directories
# of its own: what the machine's apt knows stays as it is, and nobody needs to be root.
rota_fetch_source() {
  local into=$1 apt=$1/apt uri keyring=/usr/share/keyrings/debian-archive-keyring.gpg log
  local uris=() tried=
  if ! command -v apt-get > /dev/null; then
    echo "Getting the source of Python needs apt-get, from Debian." >&2
    return 1
  fi
  # The machine's own mirrors first.
  mapfile -t uris < <({
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI)' 2> /dev/null | sed 's,/*$,,' | grep '/debian$'
    echo http://deb.debian.org/debian
  } | awk '!seen[$0]++')
  if [ ! -e "$keyring" ]; then
    echo "No $keyring, which signatures are checked with (package debian-archive-keyring)." >&2
    return 1
  fi
  mkdir -p "$apt"/{lists,cache/archives}/partial "$apt/etc"
  cat > "$apt/apt.conf" << END
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/etc/sources.list";
Dir::Etc::sourceparts "-";
Acquire::Languages "none";
APT::Sandbox::User "";
END
  for uri in "${uris[@]}"; do
    echo "deb-src [signed-by=$keyring] $uri $rota_source_suite main" > "$apt/etc/sources.list"
    if log=$({
      export APT_CONFIG=$apt/apt.conf
      cd "$into" && apt-get -q update -o APT::Update::Error-Mode=any &&
        apt-get -q source --download-only "$rota_source_package"
    } 2>&1 < /dev/null) && compgen -G "$into/*.orig.tar.xz" > /dev/null; then
      return 0
    fi
    tried+="$log"$'\n'
  done
  echo "${tried}No source of $rota_source_package from ${uris[*]} ($rota_source_suite)." >&2
  return 1
}

# See that the compiler, make and the headers are there; as root on Debian, install them.
rota_build_tools() {
  local log
  if rota_have_build_tools; then return 0; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing $rota_build_packages" >&2
    # shellcheck disable=SC2086
    if ! log=$({ apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends $rota_build_packages; } 2>&1 < /dev/null)
    then
      echo "$log" >&2
    fi
    if rota_have_build_tools; then return 0; fi
  fi
  {
    echo "To build a free-threaded Python there is missing:$rota_missing"
    echo "On Debian or Ubuntu: apt-get install $rota_build_packages"
  } >&2
  return 1
}

# Set rota_missing to what is not there.
rota_have_build_tools() {
  local tool header
  rota_missing=
  for tool in "${CC:-gcc}" make tar xz; do
    command -v "$tool" > /dev/null || rota_missing+=" $tool"
  done
  for header in stdlib.h ffi.h openssl/ssl.h zlib.h; do
    echo "#include <$header>" | "${CC:-gcc}" -fsyntax-only -x c - 2> /dev/null \
      || rota_missing+=" $header"
  done
  [ -z "$rota_missing" ]
}
