package coordination

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNoStreamIsResizedBeforeAllAreDrained(t *testing.T) {
	var said []string
	together := &ResizeTogether{OnProgress: func(waiting string) { said = append(said, waiting) }}
	together.Add("a")
	together.Add("b")
	require.False(t, together.goOn("a", wait{}), "nothing is known of b")
	require.False(t, together.goOn("b", wait{waitsForQueues, "2 entries"}))
	require.False(t, together.goOn("a", wait{}))
	require.False(t, together.goOn("a", wait{waitsForStop, "stop the instances now"}))
	require.False(t, together.goOn("b", wait{waitsForStart, "start one"}))
	require.False(t, together.goOn("b", wait{waitsForStop, "stop the instances now"}))
	require.Equal(t, []string{"stream b: 2 entries", "stream b: start one", "stop the instances now"}, said)
	require.False(t, together.goOn("a", wait{}))
	require.True(t, together.goOn("b", wait{}))
	require.True(t, together.goOn("a", wait{}))

	require.False(t, together.Fail(), "what is begun is finished")

	together = &ResizeTogether{}
	together.Add("a")
	together.Add("b")
	require.False(t, together.goOn("b", wait{}))
	require.True(t, together.Fail())
	require.False(t, together.goOn("a", wait{}))

	together = &ResizeTogether{}
	together.Add("a")
	together.Add("b")
	together.Done("a") // it was changed before
	require.True(t, together.goOn("b", wait{}))
}
