package migrate_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/golang-migrate/migrate/v4"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestMigrate_GolangMigrate(t *testing.T) {
	t.Parallel()

	tools := map[string]func(*testing.T, string) *migrate.Migrate{
		"ByHandle": golangMigrate,
		"ByURL":    golangMigrateByURL,
	}
	for name, tool := range tools {
		t.Run(name+"/MakesTheSameSchema", func(t *testing.T) {
			t.Parallel()
			ours, theirs := migrated(t), testkit.Empty(t)
			require.NoError(t, tool(t, theirs).Up())
			require.Equal(t, catalog(t, theirs), catalog(t, ours))
			require.Greater(t, len(catalog(t, ours)), 20)
		})
		t.Run(name+"/IsTakenOver", func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Empty(t)
			require.NoError(t, tool(t, dsn).Up())
			before := catalog(t, dsn)
			require.NoError(t, pgbaton.Migrate(t.Context(), testkit.Pool(t, dsn)))
			require.Equal(t, before, catalog(t, dsn))
		})
		t.Run(name+"/TakesOver", func(t *testing.T) {
			t.Parallel()
			dsn := migrated(t)
			require.ErrorIs(t, tool(t, dsn).Up(), migrate.ErrNoChange)
		})
		t.Run(name+"/DownAndUpAgainWithRisingTokens", func(t *testing.T) {
			t.Parallel()
			dsn := migrated(t)
			conn := testkit.Connect(t, dsn)
			first := testkit.Value[int64](t, conn, "SELECT pgbaton.next_token()")
			require.NoError(t, tool(t, dsn).Down())
			require.False(t, testkit.Value[bool](t, conn, "SELECT to_regnamespace('pgbaton') IS NOT NULL"))
			require.NoError(t, pgbaton.Migrate(t.Context(), testkit.Pool(t, dsn)))
			require.Greater(t, testkit.Value[int64](t, conn, "SELECT pgbaton.next_token()"), first)
		})
	}
}

// Each of eight goroutines a tool tries to migrate at the same time, and none gets an error.
func TestMigrate_GolangMigrate_AtTheSameTime(t *testing.T) {
	t.Parallel()
	const each = 8
	for range testkit.Brief(4, 1) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Empty(t)
			pool := testkit.Pool(t, dsn)
			// The tools by handle and by URL do not exclude each other; each excludes Migrate.
			tool := golangMigrate(t, dsn).Up
			jobs := []func() error{}
			for range each {
				jobs = append(jobs,
					func() error { return pgbaton.Migrate(t.Context(), pool) },
					golangMigrate(t, dsn).Up)
			}
			for _, err := range atOnce(jobs) {
				if !errors.Is(err, migrate.ErrNoChange) {
					require.NoError(t, err)
				}
			}
			require.ErrorIs(t, tool(), migrate.ErrNoChange)
			require.Contains(t, catalog(t, dsn), fmt.Sprintf("version %d dirty f", newest))
		})
	}
}

// Each round one golang-migrate by URL goes up and down while Migrate goes up; whatever the order, no
// error and no dirty version comes of it.
func TestMigrate_GolangMigrate_UpAndDownAtTheSameTime(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	pool := testkit.Pool(t, dsn)
	tool := golangMigrateByURL(t, dsn)
	for range testkit.Brief(8, 3) {
		errs := atOnce([]func() error{
			func() error { return errors.Join(up(tool), tool.Down(), up(tool)) },
			func() error { return migrateTimes(t, pool, 3) },
			func() error { return migrateTimes(t, pool, 3) },
		})
		require.NoError(t, errors.Join(errs...))
		require.Contains(t, catalog(t, dsn), fmt.Sprintf("version %d dirty f", newest))
	}
}

func up(tool *migrate.Migrate) error {
	if err := tool.Up(); !errors.Is(err, migrate.ErrNoChange) {
		return err
	}
	return nil
}

func migrateTimes(t *testing.T, pool *pgxpool.Pool, times int) error {
	t.Helper()
	for range times {
		if err := pgbaton.Migrate(t.Context(), pool); err != nil {
			return err
		}
	}
	return nil
}

// atOnce runs the jobs together and returns their errors.
func atOnce(jobs []func() error) []error {
	errs := make([]error, len(jobs))
	start := make(chan struct{})
	var group sync.WaitGroup
	for i, job := range jobs {
		group.Go(func() {
			<-start
			errs[i] = job()
		})
	}
	close(start)
	group.Wait()
	return errs
}
