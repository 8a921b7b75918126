package migrate_test

import (
	"database/sql"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/migrations"
)

// gooseOf is goose with a service's own migrations, which have the files copied into them as docs/migrations.md says.
func gooseOf(t *testing.T, dsn string) *goose.Provider {
	t.Helper()
	files := fstest.MapFS{}
	names, err := fs.Glob(migrations.FS, "*.up.sql")
	require.NoError(t, err)
	for _, name := range names {
		var both strings.Builder
		for _, part := range []struct{ direction, name string }{
			{"Up", name}, {"Down", strings.Replace(name, ".up.", ".down.", 1)},
		} {
			text, err := fs.ReadFile(migrations.FS, part.name)
			require.NoError(t, err)
			fmt.Fprintf(&both, "-- +goose %s\n-- +goose StatementBegin\n%s\n-- +goose StatementEnd\n", part.direction, text)
		}
		files[strings.Replace(name, ".up.", ".", 1)] = &fstest.MapFile{Data: []byte(both.String())}
	}
	db, err := sql.Open("pgx/v5", dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files)
	require.NoError(t, err)
	return provider
}

func TestMigrate_Goose(t *testing.T) {
	t.Parallel()
	right := rightCatalog(t)

	t.Run("IsTakenOver", func(t *testing.T) {
		t.Parallel()
		dsn := testkit.Empty(t)
		_, err := gooseOf(t, dsn).Up(t.Context())
		require.NoError(t, err)
		require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
		require.Equal(t, right, catalog(t, dsn))
	})

	// goose goes down behind Migrate's back, by a version and to nothing.
	for _, to := range []int{versions[len(versions)-2], 0} {
		t.Run(fmt.Sprintf("DownTo%d", to), func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Empty(t)
			tool := gooseOf(t, dsn)
			_, err := tool.Up(t.Context())
			require.NoError(t, err)
			require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
			_, err = tool.DownTo(t.Context(), int64(to))
			require.NoError(t, err)
			require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
			require.Equal(t, right, catalog(t, dsn))
		})
	}

	// On top of what Migrate has made goose fails, until it is told what is there.
	t.Run("OnTop", func(t *testing.T) {
		t.Parallel()
		dsn := migrated(t)
		tool := gooseOf(t, dsn)
		_, err := tool.Up(t.Context())
		require.ErrorContains(t, err, `schema "pgbaton" already exists`)
		conn := testkit.Connect(t, dsn)
		for _, version := range versions {
			testkit.Exec(t, conn, "INSERT INTO goose_db_version (version_id, is_applied) VALUES ($1, true)", version)
		}
		applied, err := tool.Up(t.Context())
		require.NoError(t, err)
		require.Empty(t, applied)
		require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
		require.Equal(t, right, catalog(t, dsn))
	})
}
