package edu.anu.spice;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;

/**
 * SPICE's scorer without JavaScript: it formats its output by a script engine that Java 15 and later do not have.
 *
 * Takes the same arguments; what would be written to `-out` is written there, unformatted.
 */
public final class SpiceJson {
    private SpiceJson() {}

    public static void main(String[] given) throws Exception {
        SpiceArguments arguments = new SpiceArguments(given);
        String place = arguments.outputPath;
        arguments.outputPath = null;
        SpiceScorer scorer = new SpiceScorer();
        scorer.scoreBatch(arguments);
        Files.write(Paths.get(place), scorer.stats.toJSONString().getBytes(StandardCharsets.UTF_8));
    }
}
