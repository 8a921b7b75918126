package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A small module, with what the caller adds to it.
func module(t *testing.T, house string, files map[string]string) (mapFile, dir string) {
	t.Helper()
	dir = t.TempDir()
	write := func(name, text string) {
		file := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o750))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	write("go.mod", "module example.org/door\n\ngo 1.25\n")
	write("door.go", "package door\n\nimport _ \"example.org/door/internal/upper\"\n")
	write("internal/upper/upper.go", "package upper\n\nimport _ \"example.org/door/internal/lower\"\n")
	write("internal/lower/lower.go", "package lower\n")
	for name, text := range files {
		write(name, text)
	}
	write("MAP.md", "# Map\n\n"+marker+"\n```text\n"+house+"```\n")
	return filepath.Join(dir, "MAP.md"), dir
}

const houseOfThree = "door   the door\nupper  above\nlower  below\n"

func TestHouse(t *testing.T) {
	t.Parallel()
	setter := map[string]string{"internal/lower/setter.go": "package lower\n\ntype Caller interface{ Call() }\n\ntype Room struct{ Caller Caller }\n"}
	for name, c := range map[string]struct {
		house string
		files map[string]string
		wrong string
	}{
		"AsTheMapSays":      {houseOfThree, nil, ""},
		"PackageNotOnMap":   {"door   the door\nupper  above\n", nil, "does not have the package lower"},
		"MapWithoutPackage": {"door   the door\nupper  above\nlower cellar  below\n", nil, "the package cellar, which does not exist"},
		"ArrowUp":           {"door   the door\nlower  above\nupper  below\n", nil, "upper imports lower"},
		"ArrowSideways":     {"door   the door\nupper lower  both\n", nil, "upper imports lower"},
		"Setter":            {houseOfThree, setter, "Room.Caller in package lower is a setter"},
		"ValueOfOnePiece":   {houseOfThree + "values: lower.Room\n", setter, ""},
		"FuncInAConfig": {houseOfThree, map[string]string{
			"internal/lower/config.go": "package lower\n\ntype Config struct{ Report func() }\n",
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mapFile, dir := module(t, c.house, c.files)
			err := run(io.Discard, mapFile, dir)
			if c.wrong == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.wrong)
		})
	}
}

// The house itself.
func TestHouse_OfTheLibrary(t *testing.T) {
	t.Parallel()
	require.NoError(t, run(io.Discard, "../../../CONTRIBUTING.md", "../../.."))
}
