package recheck

import (
	"iter"
	"math"
)

// index finds the fences near a way: a map of the world in squares.
type index struct {
	squares map[[2]int][]int
	wide    []int // fences that cover too many squares to be listed in them
	last    []int // the search that yielded a fence last
	search  int
	fences  int
}

const (
	squareDegrees = 0.25
	squaresRound  = int(360 / squareDegrees)
	manySquares   = 1024
)

func newIndex(fences [][]*drawn) *index {
	x := &index{squares: map[[2]int][]int{}, last: make([]int, len(fences)), fences: len(fences)}
	for n, versions := range fences {
		for _, v := range versions {
			squares, few := squaresOf(v.box)
			if !few {
				x.wide = append(x.wide, n)
				continue
			}
			for _, s := range squares {
				x.squares[s] = append(x.squares[s], n)
			}
		}
	}
	return x
}

// squaresOf returns the squares that a box touches, unless they are many.
func squaresOf(b box) (squares [][2]int, few bool) {
	column := func(v float64) int { return int(math.Floor(v / squareDegrees)) }
	w, e := column(b.west-slack), column(b.east+slack)
	s, n := column(b.south-slack), column(b.north+slack)
	if e-w >= manySquares || (e-w+1)*(n-s+1) > manySquares {
		return nil, false
	}
	for i := w; i <= e; i++ {
		for j := s; j <= n; j++ {
			squares = append(squares, [2]int{((i % squaresRound) + squaresRound) % squaresRound, j})
		}
	}
	return squares, true
}

// near yields the numbers of the fences that a box may touch, each once.
func (x *index) near(b box) iter.Seq[int] {
	return func(yield func(int) bool) {
		squares, few := squaresOf(b)
		if !few {
			for n := range x.fences {
				if !yield(n) {
					return
				}
			}
			return
		}
		x.search++
		lists := [][]int{x.wide}
		for _, s := range squares {
			lists = append(lists, x.squares[s])
		}
		for _, list := range lists {
			for _, n := range list {
				if x.last[n] == x.search {
					continue
				}
				if x.last[n] = x.search; !yield(n) {
					return
				}
			}
		}
	}
}
