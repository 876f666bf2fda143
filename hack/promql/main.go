// Command promql reads PromQL expressions, a JSON list of texts, from standard
// input and tells of each which series it selects, or what is wrong with it.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/prometheus/prometheus/promql/parser"
)

// selection is what an expression takes of one metric.
type selection struct {
	Metric string
	// Labels are those that it matches, or that aggregations around it keep.
	Labels []string
}

// answer is about one expression.
type answer struct {
	Error      string
	Selections []selection
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "promql:", err)
		os.Exit(1)
	}
}

func run() error {
	var expressions []string
	if err := json.NewDecoder(os.Stdin).Decode(&expressions); err != nil {
		return err
	}
	answers := make([]answer, 0, len(expressions))
	for _, e := range expressions {
		answers = append(answers, read(e))
	}
	return json.NewEncoder(os.Stdout).Encode(answers)
}

func read(expression string) (a answer) {
	tree, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		return answer{Error: err.Error()}
	}
	parser.Inspect(tree, func(node parser.Node, path []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		s := selection{Metric: selector.Name}
		for _, m := range selector.LabelMatchers {
			if m.Name != "__name__" {
				s.Labels = append(s.Labels, m.Name)
			}
		}
		for _, above := range path {
			if aggregate, ok := above.(*parser.AggregateExpr); ok && !aggregate.Without {
				s.Labels = append(s.Labels, aggregate.Grouping...)
			}
		}
		a.Selections = append(a.Selections, s)
		return nil
	})
	return a
}
