package ha

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/storm"
)

// result is what became of a plan.
type result struct {
	name    string
	outcome *storm.Outcome
}

// table writes two tables: of plans, and of the kinds of failovers over all plans.
func table(w io.Writer, results []result) {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "run\tPostgreSQL\tfailovers\ttried\tgranted\tlost\tholds judged\tviolations\toverlaps\tlongest\tcommits forgotten\truns repeated")
	for _, r := range results {
		o := r.outcome
		fmt.Fprintf(out, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%v\t%d\t%d\n", r.name, o.Major, len(o.Failovers), o.Total.Tried, o.Total.Granted,
			o.Total.Lost, o.Holds, len(o.Violations), o.Overlaps.Count, o.Overlaps.Max, o.Forgotten, o.Repeated)
	}
	_ = out.Flush() // to the terminal

	fmt.Fprintln(out, "kind\tfailovers\tno lock granted, p50\tmax\tnone in one process, p50\tmax\tnew leader, p50\tmax")
	kinds, order := map[string][]storm.Failover{}, []string{}
	for _, r := range results {
		for _, f := range r.outcome.Failovers {
			if kinds[f.Kind] == nil {
				order = append(order, f.Kind)
			}
			kinds[f.Kind] = append(kinds[f.Kind], f)
		}
	}
	for _, kind := range order {
		var without, last, led []int64
		for _, f := range kinds[kind] {
			without, last, led = append(without, int64(f.Without)), append(last, int64(f.Last)), append(led, f.Led-f.Began)
		}
		fmt.Fprintf(out, "%s\t%d", kind, len(kinds[kind]))
		for _, values := range [][]int64{without, last, led} {
			s := lab.NewSpread(values)
			fmt.Fprintf(out, "\t%v\t%v", s.At(50).Round(time.Millisecond), s.Max().Round(time.Millisecond))
		}
		fmt.Fprintln(out)
	}
	_ = out.Flush() // to the terminal
}
