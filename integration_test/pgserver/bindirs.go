package pgserver

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	envBinDir        = "PG_BINDIR"
	envTestBinDirs   = "PGBATON_TEST_BINDIRS"
	binDirSeparators = ":;, \t\n"
)

// binDirPatterns are the places where distributions and installers put the server's programs.
var binDirPatterns = []string{
	"/usr/lib/postgresql/*/bin",       // Debian, Ubuntu
	"/usr/pgsql-*/bin",                // PGDG's packages for Red Hat
	"/usr/lib/postgresql*/bin",        // SUSE
	"/usr/libexec/postgresql*",        // Alpine
	"/usr/local/pgsql/bin",            // built from source
	"/opt/homebrew/opt/postgres*/bin", // Homebrew on ARM
	"/usr/local/opt/postgres*/bin",    // Homebrew on Intel
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	"/var/cache/pgbaton/pg-*/bin", // where CI keeps the majors that the distribution lacks
	"/usr/bin",                    // Fedora, Arch
}

// BinDirs lists every directory of this machine with usable server programs (initdb, pg_ctl, postgres) of
// PostgreSQL 14 or later, newest major first. It looks at PG_BINDIR, pg_config --bindir,
// PGBATON_TEST_BINDIRS (a list with colons or spaces) and the usual places.
func BinDirs() []string {
	found := findBinDirs()
	sortNewestFirst(found)
	return paths(found)
}

// preferredBinDirs is BinDirs in the order in which one server is looked for: what was named comes
// before what was merely found.
func preferredBinDirs() []string { return paths(findBinDirs()) }

type binDir struct {
	path  string
	major int
}

func findBinDirs() []binDir {
	var seen []string
	usable := func(list []string) (dirs []binDir) {
		for _, dir := range list {
			target, err := filepath.EvalSymlinks(dir)
			if dir == "" || err != nil || slices.Contains(seen, target) {
				continue
			}
			seen = append(seen, target)
			if major := binaryMajor(dir); major >= minMajor {
				dirs = append(dirs, binDir{dir, major})
			}
		}
		return dirs
	}
	named := usable([]string{os.Getenv(envBinDir), pgConfigBinDir()})
	places := splitList(os.Getenv(envTestBinDirs), binDirSeparators)
	for _, pattern := range binDirPatterns {
		matches, _ := filepath.Glob(pattern) // fails only for a bad pattern
		places = append(places, matches...)
	}
	found := usable(places)
	sortNewestFirst(found)
	return append(named, found...)
}

func sortNewestFirst(dirs []binDir) {
	slices.SortStableFunc(dirs, func(a, b binDir) int { return b.major - a.major })
}

func paths(dirs []binDir) []string {
	list := make([]string, 0, len(dirs))
	for _, dir := range dirs {
		list = append(list, dir.path)
	}
	return list
}

func pgConfigBinDir() string {
	out, err := output("pg_config", "--bindir")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

var versionRE = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// binaryMajor is the major version of the programs in dir, or 0 when one is missing or does not run.
func binaryMajor(dir string) int {
	for _, program := range []string{"initdb", "pg_ctl"} {
		if info, err := os.Stat(filepath.Join(dir, program)); err != nil || info.Mode()&0o111 == 0 {
			return 0
		}
	}
	out, err := output(filepath.Join(dir, "postgres"), "--version")
	if err != nil {
		return 0
	}
	match := versionRE.FindStringSubmatch(out)
	if match == nil {
		return 0
	}
	major, err := strconv.Atoi(match[1])
	if err != nil {
		return 0
	}
	return major
}

func output(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).Output()
	return string(out), err
}

// BinDirOf returns the first of [BinDirs] that has a major version, or "".
func BinDirOf(major int) string {
	for _, dir := range BinDirs() {
		if binaryMajor(dir) == major {
			return dir
		}
	}
	return ""
}
